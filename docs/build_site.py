"""The documentation site, made of the notebooks as they are stored: Markdown pages, then `mkdocs build --strict`.

    python docs/build_site.py [--out _docs] [--serve]

Nothing is executed and nothing is fetched, neither while it is made nor when it is read."""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import Page, PageError, read_site, render
from run_notebooks import NOTEBOOKS, ROOT, all_notebooks

HERE = Path(__file__).resolve().parent
FLOORS = ((10, 'Ground'), (20, 'Faces'), (100, 'Command line'))  # notebooks at the top of nbs/, by their number
FOLDERS = {'tutorials': 'Tutorials', 'market': 'Market', 'trading': 'Trading', 'chain': 'Chain', 'analyst': 'Analyst', 'studies': 'Studies'}
ORDER = ['Home', 'Tutorials', 'Studies', 'Command line', 'Faces', 'Analyst', 'Chain', 'Trading', 'Market', 'Ground']


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def section_of(page: Page) -> str:
    "Where a page stands in the navigation"
    if len(page.path.parts) > 1: return FOLDERS.get(page.path.parts[0], page.path.parts[0].capitalize())
    if page.path.stem == 'index': return 'Home'
    number = re.match(r'\d+', page.source.name)
    if not number: raise PageError(f'{page.source}: a notebook at the top needs a number, which says its floor')
    return next(name for limit, name in FLOORS if int(number[0]) < limit)


def navigation(pages: list[Page]) -> list[dict[str, Any]]:
    "Home, what a reader does, then the rooms from the top floor to the ground"
    sections: dict[str, list[Page]] = {}
    for page in pages: sections.setdefault(section_of(page), []).append(page)
    ordered = sorted(sections, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    entry = lambda page: {page.title: str(page.path)}
    listed = lambda name: str(sections[name][0].path) if name == 'Home' else [entry(page) for page in sections[name]]
    return [{name: listed(name)} for name in ordered]


class Requests(HTMLParser):
    "What a browser would fetch for a page"
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or '' for name, value in attributes}
        if tag == 'link' and set(given.get('rel', '').split()) & {'canonical', 'next', 'prev', 'alternate', 'author', 'license'}: return
        names = ['src', 'srcset', 'poster', 'data', *(['href'] if tag in ('link', 'image', 'use') else [])]
        wanted = [given.get(name, '') for name in names]
        wanted += re.findall(r'url\(([^)]*)\)', given.get('style', ''))
        self.found += [f'<{tag}> {value}' for value in wanted if re.match(r'\s*["\']?(https?:)?//', value)]
        if 'mermaid' in given.get('class', '').split(): self.found.append('<mermaid> a script from another host')
        if given.get('data-md-component') == 'source': self.found.append('<source> facts about the repository from its host')


def foreign_requests(folder: Path) -> list[str]:
    "Every request to another host that the pages and style sheets of a site would make"
    found = []
    for path in sorted(folder.rglob('*.html')):
        parser = Requests()
        parser.feed(path.read_text(encoding='utf-8'))
        found += [f'{path.relative_to(folder)}: {item}' for item in parser.found]
    for path in sorted(folder.rglob('*.css')):
        text = path.read_text(encoding='utf-8')
        found += [f'{path.relative_to(folder)}: {item}' for item in re.findall(r'(?:url\(|@import\s+)["\']?(?:https?:)?//[^)"\']*', text)]
    return found


def build(out: Path, work: Path) -> None:
    "Make the pages in `work`, and the site in `out`"
    known = settings()
    pages_folder = work/'pages'
    site = read_site(all_notebooks(), NOTEBOOKS)
    for page in site.pages:
        target = pages_folder/page.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(page, site, pages_folder, f'{known["git_url"]}/blob/{known["branch"]}'), encoding='utf-8')
    shutil.copytree(HERE/'assets', pages_folder/'assets')
    (work/'outputs.json').write_text(json.dumps(site.html), encoding='utf-8')
    config = dict(INHERIT=str(HERE/'mkdocs.yml'), docs_dir=str(pages_folder), site_dir=str(out), hooks=[str(HERE/'hooks.py')],
                  site_url=f'{known["doc_host"]}{known["doc_baseurl"]}/', nav=navigation(site.pages),
                  theme=dict(favicon='assets/favicon.svg'))
    (work/'mkdocs.yml').write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')
    environment = dict(os.environ, NO_MKDOCS_2_WARNING='1', DISABLE_MKDOCS_2_WARNING='true')
    made = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--config-file', str(work/'mkdocs.yml')],
                          env=environment, stdin=subprocess.DEVNULL)
    if made.returncode: raise PageError('mkdocs refused the site, see above')
    if found := foreign_requests(out): raise PageError('the site would make requests to other hosts:\n  ' + '\n  '.join(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--out', type=Path, default=ROOT/settings()['doc_path'], help='where the site goes (default %(default)s)')
    parser.add_argument('--serve', action='store_true', help='then serve it at http://localhost:8000')
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as work:
        try: build(out, Path(work))
        except PageError as error:
            print(error, file=sys.stderr)
            return 1
    print(f'the site: {out/"index.html"} ({sum(1 for _ in out.rglob("*.html"))} pages)')
    if arguments.serve: subprocess.run([sys.executable, '-m', 'http.server', '8000', '--bind', '127.0.0.1', '--directory', str(out)])
    return 0


if __name__ == '__main__': sys.exit(main())
