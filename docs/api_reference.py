"""What a piece of exported source offers: names, signatures and the comments beside the parameters, as Markdown.

Nothing is imported or executed: the text is parsed, so a page can be made of a module whose libraries are absent."""
from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Parameter:
    name: str
    type: str = ''
    default: str = ''
    meaning: str = ''


@dataclass
class Symbol:
    "A public function, class or method"
    name: str         # with its class before a dot
    kind: str         # function, class, method
    signature: str
    summary: str      # its docstring
    parameters: list[Parameter] = field(default_factory=list)
    returns: Parameter | None = None
    members: list[Symbol] = field(default_factory=list)

    @property
    def anchor(self) -> str: return self.name.lower()


def comments_of(source: str) -> dict[int, str]:
    "Line number -> the comment that ends it (`# noqa` and `# type:` are not for readers)"
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip('# ').strip()
        if token.type == tokenize.COMMENT and not re.match(r'(noqa|type:|pragma|fmt:|%%)', text): found[token.start[0]] = text
    return found


def decorators(node: Function | ast.ClassDef) -> set[str]:
    "The names of the decorators, such as `property` and `dataclass`"
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return {ast.unparse(item).split('.')[-1] for item in calls}


def unparsed(node: ast.expr | None) -> str: return '' if node is None else ast.unparse(node)


def parameters_of(node: Function, comments: dict[int, str]) -> list[Parameter]:
    "The parameters in order, each with the comment on its line"
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults):]
    defaults: dict[str, ast.expr] = {item.arg: value for item, value in zip(with_default, arguments.defaults)}
    defaults |= {item.arg: value for item, value in zip(arguments.kwonlyargs, arguments.kw_defaults) if value is not None}
    starred = {id(item): stars for item, stars in ((arguments.vararg, '*'), (arguments.kwarg, '**')) if item}
    everything = [*positional, *filter(None, [arguments.vararg]), *arguments.kwonlyargs, *filter(None, [arguments.kwarg])]
    found = []
    for number, item in enumerate(everything):
        if item.arg in ('self', 'cls'): continue
        default = defaults.get(item.arg)
        line = (default.end_lineno if default is not None else item.end_lineno) or 0
        shares = number + 1 < len(everything) and everything[number + 1].lineno == line  # the comment belongs to the last on a line
        meaning = '' if shares or line == node.body[0].lineno else comments.get(line, '')
        found.append(Parameter(starred.get(id(item), '') + item.arg, unparsed(item.annotation), unparsed(default), meaning))
    return found


def returned(node: Function, comments: dict[int, str]) -> Parameter | None:
    "What comes back, with the comment beside it"
    if node.returns is None or ast.unparse(node.returns) == 'None': return None
    line = node.returns.end_lineno or 0
    last = max((item.end_lineno or 0 for item in ast.walk(node.args) if isinstance(item, ast.arg)), default=0)
    meaning = comments.get(line, '') if line != last or line == node.lineno else ''
    return Parameter('returns', ast.unparse(node.returns), '', meaning)


def signature_of(name: str, node: Function) -> str:
    "The head of a function as it is called, broken one parameter a line where it is long"
    prefix = 'async ' if isinstance(node, ast.AsyncFunctionDef) else ''
    result = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    short = f'{prefix}{name}({ast.unparse(node.args)}){result}'
    if len(short) <= 92: return short
    # cut at the commas that stand outside all brackets and strings
    parts, depth, quote, start, text = [], 0, '', 0, ast.unparse(node.args)
    for place, letter in enumerate(text):
        if quote: quote = '' if letter == quote else quote
        elif letter in '\'"': quote = letter
        elif letter in '([{': depth += 1
        elif letter in ')]}': depth -= 1
        elif letter == ',' and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return f'{prefix}{name}(\n' + ''.join(f'    {part},\n' for part in parts) + f'){result}'


def function(node: Function, comments: dict[int, str], owner: str = '') -> Symbol:
    name, marks = f'{owner}.{node.name}' if owner else node.name, decorators(node)
    is_property = bool(marks & {'property', 'cached_property'})
    if not is_property: signature = signature_of(name, node)
    else: signature = f'{name}: {ast.unparse(node.returns)}' if node.returns else name
    kind = 'property' if is_property else 'method' if owner else 'function'
    result = None if is_property else returned(node, comments)
    return Symbol(name, kind, signature, ast.get_docstring(node) or '', parameters_of(node, comments), result)


def class_(node: ast.ClassDef, comments: dict[int, str]) -> Symbol:
    bases = ', '.join(ast.unparse(base) for base in [*node.bases, *(keyword.value for keyword in node.keywords)])
    found = Symbol(node.name, 'class', f'class {node.name}({bases})' if bases else f'class {node.name}', ast.get_docstring(node) or '')
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith('_'):
            found.parameters.append(Parameter(item.target.id, ast.unparse(item.annotation), ast.unparse(item.value) if item.value else '',
                                              comments.get(item.end_lineno or 0, '')))
        elif isinstance(item, Function):
            if item.name == '__init__' and not found.parameters:
                found.parameters = parameters_of(item, comments)
                item.returns = None
                found.signature = signature_of(node.name, item).replace('(self, ', '(').replace('(self)', '()').replace('    self,\n', '')
            elif not item.name.startswith('_'): found.members.append(function(item, comments, node.name))
    return found


def symbols(source: str) -> list[Symbol]:
    "The public functions and classes of a piece of source"
    tree, comments = ast.parse(source), comments_of(source)
    found: list[Symbol] = []
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith('_'): found.append(function(node, comments))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'): found.append(class_(node, comments))
    return found


def only_imports(source: str) -> bool:
    "Whether a cell holds nothing but imports (and comments)"
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def cell_text(text: str) -> str:
    "Text for a cell of a Markdown table"
    plain = lambda part: part.replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*').replace('_', '\\_')
    return ''.join(part if part.startswith('`') else plain(part) for part in re.split(r'(`[^`]*`)', text.replace('\n', ' ')))


def code(text: str) -> str: return f'`{text}`' if text else ''


def table(rows: list[Parameter], returns: Parameter | None, linked: Callable[[str], str]) -> str:
    "The table of parameters; empty where it would tell nothing beyond the signature"
    rows = [*rows, *([Parameter('*returns*', returns.type, '', returns.meaning)] if returns else [])]
    if not any(row.meaning for row in rows): return ''
    defaults = any(row.default for row in rows)
    lines = ['| | type | default | |' if defaults else '| | type | |', '|---|---|---|---|' if defaults else '|---|---|---|']
    for row in rows:
        name = row.name if row.name == '*returns*' else code(row.name)
        lines.append(f'| {name} | {code(row.type)} | {f"{code(row.default)} | " if defaults else ""}{linked(cell_text(row.meaning))} |')
    return '\n'.join(lines)


def markdown(symbol: Symbol, linked: Callable[[str], str], level: int = 3) -> str:
    "A heading with its anchor, the signature, what it does, the table of its parameters, and its methods"
    short = symbol.name.split('.')[-1]
    parts = [f'{"#" * level} `{short}` {{ #{symbol.anchor} .api .api-{symbol.kind} data-toc-label="{short}" }}',
             f'``` {{ .python .api-signature }}\n{symbol.signature}\n```' if symbol.signature != f'class {symbol.name}' else '',
             linked(symbol.summary), table(symbol.parameters, symbol.returns, linked)]
    parts += [markdown(member, linked, level + 1) for member in symbol.members]
    return '\n\n'.join(part for part in parts if part)
