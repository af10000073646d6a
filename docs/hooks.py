"What MkDocs does on the way: formulas become MathML, and stored HTML outputs take their places"
from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
BOLD = {letter: chr(0x1D400 + number) for number, letter in enumerate('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz')}
BOLD |= {str(number): chr(0x1D7CE + number) for number in range(10)}
outputs: dict[str, str] = {}


def on_config(config: Any, **_: Any) -> Any:
    stored = Path(config['docs_dir']).parent/'outputs.json'
    outputs.clear()
    if stored.exists(): outputs.update(json.loads(stored.read_text(encoding='utf-8')))
    return config


def mathml(latex: str, display: str, where: str) -> str:
    "One formula as MathML; what the converter does not know is an error, not a line of raw LaTeX"
    latex = re.sub(r'\\(begin|end)\{(aligned|split|gathered)\}', r'\\\1{align*}', html.unescape(latex).strip())
    latex = re.sub(r'\\mathbf\s*(\w)', r'\\mathbf{\1}', latex)
    try: made = convert(latex, display=display)
    except Exception as error: raise PluginError(f'{where}: no MathML for {latex!r}: {type(error).__name__}: {error}') from error
    unknown = re.findall(r'>(\\[A-Za-z]+)<', html.unescape(made))
    if unknown: raise PluginError(f'{where}: {unknown} in the formula {latex!r} is not known')
    # browsers know no mathvariant but `normal`: a bold letter is a letter of its own
    bold = lambda found: f'<{found[1]}>{"".join(BOLD.get(letter, letter) for letter in found[2])}</{found[1]}>'
    return re.sub(r'<(m[in]) mathvariant="bold">([^<]*)</\1>', bold, made)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    where = page.file.src_uri
    content = FORMULA.sub(lambda found: mathml(found[3], 'block' if found[2] == '[' else 'inline', where), content)
    return re.sub(r'<div id="(output-[0-9a-f]+)"></div>', lambda found: outputs[found[1]], content)


def on_post_build(config: Any, **_: Any) -> None:
    "MathML is in the search index neither as letters nor as tags"
    index = Path(config['site_dir'])/'search'/'search_index.json'
    if index.exists():
        data = json.loads(index.read_text(encoding='utf-8'))
        for entry in data['docs']: entry['text'] = re.sub(r'<math.*?</math>', ' ', entry['text'], flags=re.S)
        index.write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
