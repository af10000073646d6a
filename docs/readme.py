"""README.md, made of nbs/index.ipynb as it is stored.

    python docs/readme.py [--check]     (--check only says whether it is up to date)"""
from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import body, in_prose, source_of
from run_notebooks import EXPORTS, NOTEBOOKS, ROOT, directives

INDEX = NOTEBOOKS/'index.ipynb'
PICTURES = 'docs/images'
NOTE = '<!-- made from nbs/index.ipynb by docs/readme.py: change it there -->'


def from_root(text: str) -> str:
    "Links and pictures beside the notebook, as they are seen from the repository's root"
    return re.sub(r'(\]\()(?!https?:|#|mailto:)([^)\s]+)', lambda found: found[1] + re.sub(r'^nbs/\.\./', '', f'nbs/{found[2]}'), text)


def readme(index: Path) -> dict[str, bytes]:
    "The files there should be: path from the root -> content"
    files, parts = {}, []
    for cell in json.loads(index.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown': parts.append(in_prose(source_of(cell), from_root))
        if cell['cell_type'] != 'code': continue
        found, code = directives(cell), body(cell)
        if found.keys() & (EXPORTS | {'hide', 'default_exp'}): continue
        if code.strip() and found.get('echo') != ['false'] and 'hide_input' not in found: parts.append(f'```python\n{code}\n```')
        for output in cell.get('outputs', []) if found.get('output') != ['false'] else []:
            data = {kind: ''.join(value) if isinstance(value, list) else value for kind, value in output.get('data', {}).items()}
            text = data.get('text/plain', '') or ''.join(output.get('text', ''))
            if 'image/png' in data:
                name = f'{PICTURES}/readme-{1 + sum(path.startswith(PICTURES) for path in files)}.png'
                files[name] = base64.b64decode(data['image/png'])
                width = output.get('metadata', {}).get('image/png', {}).get('width')
                size = f' width="{width}"' if width else ''
                parts.append(f'<p align="center"><img src="{name}" alt="What a session looks like"{size}></p>')
            elif 'text/markdown' in data: parts.append(data['text/markdown'])
            elif text.strip(): parts.append(f'```text\n{text.rstrip()}\n```')
    files['README.md'] = ('\n\n'.join([NOTE, *(part.strip('\n') for part in parts if part.strip())]) + '\n').encode()
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--check', action='store_true', help='change nothing; fail if anything would change')
    arguments = parser.parse_args()
    if not INDEX.exists():
        print('there is no nbs/index.ipynb to make the README of', file=sys.stderr)
        return 1
    wanted = readme(INDEX)
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT/PICTURES).glob('readme-*.png')}
    same = lambda name: (ROOT/name).exists() and (ROOT/name).read_bytes() == wanted[name]
    stale = sorted({name for name in wanted if not same(name)} | (present - wanted.keys()))
    if arguments.check:
        if stale: print(f'not as nbs/index.ipynb has it: {", ".join(stale)}; run `make docs`', file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        if name in wanted: (ROOT/name).write_bytes(wanted[name])
        else: (ROOT/name).unlink()
    print(f'README.md: {", ".join(stale) + " written" if stale else "up to date"}')
    return 0


if __name__ == '__main__': sys.exit(main())
