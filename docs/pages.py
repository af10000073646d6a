"""Notebooks to Markdown pages for the site: directives, callouts, links, outputs. Nothing is executed: what a notebook shows is
what is stored in it."""
from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from api_reference import Symbol, markdown, only_imports, symbols
from run_notebooks import EXPORTS, PACKAGE, directives, exported_module

CALLOUTS = {'note': 'note', 'tip': 'tip', 'warning': 'warning', 'caution': 'danger', 'important': 'info'}
NAME = re.compile(r'(?<!`)`([A-Za-z_][\w.]*(?:\(\))?)`(?!`)')
FENCE = re.compile(r'^(`{3,}|~{3,})')


class PageError(Exception):
    "A notebook can't be made a page; the message says where and why"


@dataclass
class Page:
    "A notebook, and where it stands on the site"
    source: Path                    # the notebook
    path: PurePosixPath             # of the page, such as market/book.md
    title: str
    blurb: str
    module: str | None              # cryptoexp.market.book
    cells: list[Any]
    symbols: list[Symbol] = field(default_factory=list)


@dataclass
class Site:
    "All pages, and what they need of one another"
    pages: list[Page]
    by_notebook: dict[Path, Page]
    names: dict[str, str | None]    # `Symbol` or `market.book` -> page#anchor; None: said of several, so not linked
    html: dict[str, str] = field(default_factory=dict)  # placeholder -> the HTML an output holds


def page_path(notebook: PurePosixPath) -> PurePosixPath:
    "market/02_book.ipynb -> market/book.md"
    return notebook.with_name(re.sub(r'^\d+[a-z]?_', '', notebook.stem) + '.md')


def source_of(cell: Any) -> str: return ''.join(cell['source'])


def body(cell: Any) -> str:
    "A code cell without its directives"
    lines = source_of(cell).splitlines()
    while lines and (lines[0].strip().startswith('#|') or not lines[0].strip()): lines.pop(0)
    return '\n'.join(lines).rstrip()


def read_page(notebook: Path, root: Path) -> Page:
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    for cell in cells:
        if cell['cell_type'] == 'markdown' and (found := re.match(r'#\s+(.+)\n*((?:>.*\n?)*)', source_of(cell))):
            title, blurb = found[1].strip(), ' '.join(line.lstrip('> ').strip() for line in found[2].splitlines())
            break
    else: raise PageError(f'{notebook}: no cell starts with a title (`# ...`)')
    page = Page(notebook, page_path(PurePosixPath(notebook.relative_to(root).as_posix())), title, blurb, exported_module(cells), cells)
    for cell in cells:
        if directives(cell).keys() & EXPORTS:
            try: page.symbols += symbols(body(cell))
            except SyntaxError as error: raise PageError(f'{notebook}: an exported cell is not Python: {error}') from None
    return page


def read_site(notebooks: list[Path], root: Path) -> Site:
    pages = [read_page(notebook, root) for notebook in notebooks]
    if twice := {str(page.path) for page in pages if sum(other.path == page.path for other in pages) > 1}:
        raise PageError(f'two notebooks make the same page: {", ".join(sorted(twice))}')
    names: dict[str, str | None] = {}
    for page in pages:
        if page.module: names[page.module.removeprefix(f'{PACKAGE}.')] = names[page.module] = str(page.path)
        for symbol in page.symbols:
            for item in (symbol, *symbol.members):
                names[item.name] = None if item.name in names else f'{page.path}#{item.anchor}'
    return Site(pages, {page.source.resolve(): page for page in pages}, names)


def relative(target: str, page: Page) -> str:
    "A page of the site, as it is linked from another"
    return '../' * (len(page.path.parts) - 1) + target


def in_prose(text: str, change: Callable[[str], str]) -> str:
    "Apply `change` to the lines outside fenced code"
    parts, prose, fence = [], [], ''
    for line in text.splitlines():
        if fence:
            parts.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]): fence = ''
        elif found := FENCE.match(line.strip()):
            if prose: parts.append(change('\n'.join(prose)))
            prose, fence = [], found[1]
            parts.append(line)
        else: prose.append(line)
    if prose: parts.append(change('\n'.join(prose)))
    return '\n'.join(parts)


def link_names(text: str, page: Page, site: Site) -> str:
    "`name` -> a link, where the name is known and said of one thing only; not in headings nor inside links"
    def link(found: re.Match[str]) -> str:
        target = site.names.get(found[1].removesuffix('()'))
        if not target or (target.split('#')[0] == str(page.path) and '#' not in target): return found[0]
        return f'[`{found[1]}`]({relative(target, page)})'
    def line_links(line: str) -> str:
        if line.lstrip().startswith('#'): return line
        pieces = re.split(r'(\[[^\]]*\]\([^)]*\))', line)
        return ''.join(piece if number % 2 else NAME.sub(link, piece) for number, piece in enumerate(pieces))
    return '\n'.join(line_links(line) for line in text.split('\n'))


def link_notebooks(text: str, page: Page, site: Site) -> str:
    "Links to other notebooks become links to their pages"
    def link(found: re.Match[str]) -> str:
        if '://' in found[1]: return found[0]
        notebook = (page.source.parent/found[1]).resolve()
        if notebook not in site.by_notebook: raise PageError(f'{page.source}: a link leads to {found[1]}, which is no notebook of the site')
        return f']({relative(str(site.by_notebook[notebook].path), page)}{found[2] or ""})'
    return re.sub(r'\]\(([^)\s#]+\.ipynb)(#[^)\s]*)?\)', link, text)


def copy_images(text: str, page: Page, out: Path) -> str:
    "Pictures that lie beside the notebooks go along"
    def copy(found: re.Match[str]) -> str:
        if '://' in found[2]: raise PageError(f'{page.source}: the picture {found[2]} lies on another host; put it beside the notebook')
        picture = page.source.parent/found[2]
        if not picture.is_file(): raise PageError(f'{page.source}: there is no picture {found[2]}')
        name = f'{hashlib.sha256(picture.read_bytes()).hexdigest()[:16]}{picture.suffix}'
        (out/'figures').mkdir(parents=True, exist_ok=True)
        (out/'figures'/name).write_bytes(picture.read_bytes())
        return f'![{found[1]}]({relative(f"figures/{name}", page)}){{ .figure }}'
    return re.sub(r'!\[([^\]]*)\]\(([^)\s]+)\)', copy, text)


def callouts(text: str) -> str:
    "`::: {.callout-note}` ... `:::` -> an admonition; other fences of that kind are taken off"
    lines, made, place = text.splitlines(), [], 0
    while place < len(lines):
        found = re.match(r'^:::+\s*\{(.*)\}\s*$', lines[place])
        if not found:
            made.append(lines[place])
            place += 1
            continue
        end = next((number for number in range(place + 1, len(lines)) if re.match(r'^:::+\s*$', lines[number])), None)
        if end is None: raise PageError(f'a `{lines[place]}` is never closed')
        inside, kind = '\n'.join(lines[place + 1:end]).strip().splitlines(), re.search(r'\.callout-(\w+)', found[1])
        if kind:
            title = f' "{inside.pop(0).lstrip("# ")}"' if inside and inside[0].startswith('#') else ''
            mark = '???' if 'collapse' in found[1] else '!!!'
            made += [f'{mark} {CALLOUTS.get(kind[1], "note")}{title}', '', indent('\n'.join(inside)), '']
        else: made += inside
        place = end + 1
    return '\n'.join(made)


def indent(text: str) -> str: return '\n'.join('    ' + line if line else line for line in text.splitlines())


def block(text: str, classes: str = '.text .output') -> str:
    "A fence longer than any within"
    fence = '`' * max(3, 1 + max((len(run) for run in re.findall(r'`+', text)), default=0))
    return f'{fence} {{ {classes} }}\n{text.rstrip()}\n{fence}'


def output(result: Any, section: str, page: Page, site: Site, out: Path) -> str:
    "One stored output as Markdown; HTML waits under a placeholder until the page is HTML itself"
    if result['output_type'] == 'stream':
        text = re.sub(r'\x1b\[[0-9;]*m', '', ''.join(result['text']))
        return block(text) if text.strip() else ''
    if result['output_type'] == 'error': return block(re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(result['traceback'])))
    data = {kind: ''.join(value) if isinstance(value, list) else value for kind, value in result.get('data', {}).items()}
    for kind, suffix in (('image/svg+xml', 'svg'), ('image/png', 'png')):
        if kind not in data: continue
        content = data[kind].encode() if suffix == 'svg' else base64.b64decode(data[kind])
        name = f'{hashlib.sha256(content).hexdigest()[:16]}.{suffix}'
        (out/'figures').mkdir(parents=True, exist_ok=True)
        (out/'figures'/name).write_bytes(content)
        size = result.get('metadata', {}).get(kind, {}).get('width')
        width = f' width={size}' if size else ''
        return f'![{section.replace("]", "")}]({relative(f"figures/{name}", page)}){{ .figure loading=lazy{width} }}'
    if 'text/markdown' in data: return data['text/markdown']
    if 'text/latex' in data: return data['text/latex']
    if 'text/html' in data:
        html = re.sub(r'<style scoped>.*?</style>', '', data['text/html'], flags=re.S)
        key = f'output-{hashlib.sha256(html.encode()).hexdigest()[:16]}'
        site.html[key] = f'<div class="output-html">{html}</div>'
        return f'<div id="{key}"></div>'
    text = data.get('text/plain', '')
    return block(text) if text.strip() and not re.fullmatch(r'<Figure size .*>', text.strip()) else ''


def folded(title: str, text: str, opened: bool = False) -> str: return f'???{"+" if opened else ""} abstract "{title}"\n\n{indent(text)}'


def exported(cell: Any, page: Page, site: Site, repository: str) -> list[str]:
    "An exported cell: what it offers, and the source folded below; constants and private helpers are shown as they are"
    code = body(cell)
    if only_imports(code): return []
    found, private = symbols(code), [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    listing = block(code, '.python')
    if not found: return [folded('Source: ' + ', '.join(f'`{node.name}`' for node in private), listing)] if private else [listing]
    linked = lambda text: link_names(text, page, site)
    link = f'{repository}/{(page.module or PACKAGE).replace(".", "/")}.py'
    return [*(markdown(symbol, linked) for symbol in found), folded('Source', f'{listing}\n\n[in the module]({link}){{ .source }}')]


def render(page: Page, site: Site, out: Path, repository: str) -> str:
    "The page's Markdown"
    title, blurb = (json.dumps(text, ensure_ascii=False) for text in (page.title, page.blurb))
    parts = [f'---\ntitle: {title}\ndescription: {blurb}\n---']
    section, headed = page.title, False
    for cell in page.cells:
        if cell['cell_type'] == 'raw': continue
        if cell['cell_type'] == 'markdown':
            text = source_of(cell)
            if not headed and (found := re.match(r'#\s+(.+)\n*((?:>.*\n?)*)', text)):
                headed, text = True, text[found.end():]
                parts.append(f'# {page.title}')
                if page.blurb: parts.append(link_names(f'{page.blurb}', page, site) + '\n{ .lead }')
                if page.module: parts.append(f'`{page.module}`\n{{ .module }}')
            if re.search(r'^\s*(```|~~~)\s*\{?\.?mermaid', text, re.M):
                raise PageError(f'{page.source}: a mermaid diagram would be drawn by a script from another host; use a figure or text')
            try: text = callouts(text)
            except PageError as error: raise PageError(f'{page.source}: {error}') from None
            parts.append(in_prose(text, lambda prose: copy_images(link_notebooks(link_names(prose, page, site), page, site), page, out)))
            if headings := re.findall(r'^#+\s+(.+?)\s*$', text, re.M): section = headings[-1]
            continue
        if cell['cell_type'] != 'code': continue
        found_directives, code = directives(cell), body(cell)
        said = lambda name, found=found_directives: (found.get(name) or [''])[0].lower()
        if 'hide' in found_directives or 'default_exp' in found_directives or said('include') == 'false': continue
        if found_directives.keys() & EXPORTS:
            parts += exported(cell, page, site, repository)
            continue
        if code.strip() and said('echo') != 'false' and 'hide_input' not in found_directives:
            listing = block(code, '.python')
            title = ' '.join(found_directives.get('code-summary', ['Code'])).strip('"\'')
            parts.append(folded(title, listing, said('code-fold') == 'show') if said('code-fold') in ('true', 'show') else listing)
        if said('output') == 'false' or 'hide_output' in found_directives: continue
        parts += [output(result, section, page, site, out) for result in cell.get('outputs', [])]
    return '\n\n'.join(part.strip('\n') for part in parts if part.strip()) + '\n'
