"""A notebook as Jupyter runs it, from top to bottom with its exported cells: is each name there when a cell needs it?

`run_notebooks.py` imports the module and leaves the exported cells out, so that what is tested is what is shipped. It can't see that an
example calls a function whose helper stands further down, nor that a variable of an example takes the place of an exported function.
Nothing is run here. Each statement is compiled, and what it loads is read from its bytecode, so that scopes are Python's own: the names
it needs at once, and those which the functions and classes that it reaches ask the notebook for, in whatever branch. A class asks for
what its special methods ask for, and those of its methods that the code which reaches it names as an attribute. A variable stands for
all that was loaded to make it. What is only defined (a function, a default, an annotation) is not called by that.
"""
from __future__ import annotations

import ast
import builtins
import dis
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

GIVEN = {*dir(builtins), '__name__', '__annotations__', 'display', 'get_ipython'}   # what a kernel has before the first cell
LOADS = {'LOAD_NAME', 'LOAD_GLOBAL', 'LOAD_FROM_DICT_OR_GLOBALS'}
ATTRIBUTES = {'LOAD_ATTR', 'LOAD_METHOD', 'LOAD_SUPER_ATTR'}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Cell:
    number: int
    exported: bool
    code: str


@dataclass
class Uses:
    "What code asks for: names of the notebook, and attributes (`name.attribute` of a name, `.attribute` of anything else)"
    names: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)

    def add(self, other: Uses) -> None:
        self.names |= other.names
        self.attributes |= other.attributes


@dataclass
class Step:
    "A statement: its loads, bindings and deletions in order, what it asks for at once, and what the names it binds will ask for"
    order: list[tuple[str, str]] = field(default_factory=list)
    now: Uses = field(default_factory=Uses)
    later: Uses = field(default_factory=Uses)
    methods: dict[str, Uses] = field(default_factory=dict)    # of a class
    imports: dict[str, str] = field(default_factory=dict)     # name -> what it is a name of


@dataclass(frozen=True)
class Meaning:
    "What a name of the notebook stands for: the cell that bound it, and how"
    cell: Cell
    step: Step


class Bare(ast.NodeTransformer):
    "Takes annotations out: they name a class, and call none of its methods"
    def visit_arg(self, node: ast.arg) -> ast.arg: return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], self.visit(node.value)) if node.value is not None else ast.Pass()


def inner(code: CodeType) -> list[CodeType]: return [item for item in code.co_consts if isinstance(item, CodeType)]


def parts_of(code: CodeType) -> Iterator[tuple[str, Any]]:
    "What its instructions do: load, bind or delete a name, bind one of the notebook (global), take an attribute, make a function (code)"
    kinds = {'STORE_NAME': 'bind', 'STORE_GLOBAL': 'global', 'DELETE_NAME': 'delete'}
    before = ''
    for part in dis.get_instructions(code):
        if part.opname in ATTRIBUTES: yield 'attribute', f'{before}.{part.argval}'
        elif part.opname in LOADS: yield 'load', part.argval
        elif part.opname in kinds: yield kinds[part.opname], part.argval
        elif isinstance(part.argval, CodeType): yield 'code', part.argval
        before = part.argval if part.opname in LOADS else ''


def asked(code: CodeType, deep: bool = True) -> Uses:
    "What a function asks for when it is called, with all that is inside it; or what the body of a class asks for, without its methods"
    found = Uses()
    own: set[str] = set()   # the names of a class's body
    for what, name in parts_of(code):
        if what == 'bind': own.add(name)
        elif what == 'load' and name not in own: found.names.add(name)
        elif what == 'attribute': found.attributes.add(name)
        elif what == 'code' and deep: found.add(asked(name))
    return found


def bound_inside(code: CodeType) -> set[str]:
    "The names of the notebook that an assignment in a comprehension, or a function's `global`, binds"
    return {name for what, name in parts_of(code) if what == 'global'}.union(*map(bound_inside, inner(code)))


def compiled(statement: ast.stmt) -> CodeType:
    tree = ast.fix_missing_locations(ast.Module([statement], []))
    made: CodeType = compile(tree, 'cell', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return made


def step_of(statement: ast.stmt) -> Step:
    step = Step()
    if isinstance(statement, Definition):   # what it names, annotations with it, has to be there; what it calls is another question
        step.order += [part for part in parts_of(compiled(statement)) if part[0] == 'load']
        statement = Bare().visit(statement)
    for what, name in parts_of(compiled(statement)):
        if what in ('bind', 'global'): step.order.append(('bind', name))
        elif what == 'delete': step.order.append(('delete', name))
        elif what == 'load':
            step.order.append(('load', name))
            step.now.names.add(name)
        elif what == 'attribute': step.now.attributes.add(name)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and name.co_name == statement.name: step.later.add(asked(name))
        else:   # a comprehension or a lambda, taken as called at once, or the body of a class, which is run at once
            is_class = not name.co_flags & inspect.CO_OPTIMIZED
            uses = asked(name, deep=not is_class)
            step.order += [*(('bind', one) for one in bound_inside(name)), *(('load', one) for one in uses.names)]
            step.now.add(uses)
            for method in inner(name) if is_class else ():
                called = method.co_name if method.co_name.isidentifier() else '__init__'   # such as a default's lambda
                step.methods.setdefault(called, Uses()).add(asked(method))
    step.later.add(step.now)
    if isinstance(statement, Definition):
        calls = {node.func for node in ast.walk(statement) if isinstance(node, ast.Call)} | set(statement.decorator_list)
        step.now.names &= {node.id for node in calls if isinstance(node, ast.Name)}
    else: step.later.names -= {name for what, name in step.order if what == 'bind'}
    if isinstance(statement, ast.Import):
        for one in statement.names: step.imports[one.asname or one.name.split('.')[0]] = one.name if one.asname else one.name.split('.')[0]
    if isinstance(statement, ast.ImportFrom):
        for one in statement.names: step.imports[one.asname or one.name] = f'{statement.module}.{one.name}'
    return step


def reached(start: Uses, known: dict[str, Meaning]) -> dict[str, str]:
    "Each name that code asks for, itself or by what it reaches -> who asks: '' the code, 'function', 'Class', 'Class.method'"
    by: dict[str, str] = {}
    named: set[str] = set()                     # attributes that somebody takes; of a module they are no methods of ours
    fresh: list[tuple[str, Uses]] = [('', start)]
    waiting: dict[str, tuple[str, Uses]] = {}   # the methods that nobody has named yet
    while fresh:
        who, uses = fresh.pop()
        for attribute in uses.attributes:
            owner, name = attribute.split('.')
            if not (owner in known and owner in known[owner].step.imports): named.add(name)
        for name in sorted(uses.names - by.keys()):
            by[name] = who
            if meaning := known.get(name):
                fresh.append((name, meaning.step.later))
                waiting |= {f'{name}.{method}': (method, more) for method, more in meaning.step.methods.items()}
        for key in [key for key, (method, _) in waiting.items() if method in named or method.startswith('__')]:
            fresh.append((key, waiting.pop(key)[1]))
    return by


def way_to(name: str, by: dict[str, str]) -> str:
    "`helper`, asked for by `Maker.run`, asked for by `maker`"
    steps = [name]
    while who := by[steps[-1].split('.')[0]]: steps.append(who)
    return ', asked for by '.join(f'`{one}`' for one in steps)


def complaints(cells: Sequence[Cell]) -> Iterator[str]:
    "What goes otherwise in a kernel than against the module, each with the cells that are concerned (counted from 0)"
    steps = [(cell, step_of(statement)) for cell in cells for statement in ast.parse(cell.code).body]
    exports = {name: Meaning(cell, step) for cell, step in steps if cell.exported for what, name in step.order if what == 'bind'}
    known: dict[str, Meaning] = {}
    ever = set(GIVEN)
    examples: dict[str, Cell] = {}   # name of the module -> the example that bound it to something else
    told: set[tuple[int, str]] = set()
    for cell, step in steps:
        by, here = reached(step.now, known), {name for what, name in step.order if what == 'bind'}
        missing = [name for name, who in by.items() if who and name not in ever | here]
        bound: dict[str, Meaning] = {}
        for what, name in step.order:
            if what == 'load' and name not in known.keys() | bound.keys() | GIVEN:
                by[name] = ''
                missing.append(name)
            elif what == 'bind': bound[name] = Meaning(cell, step)
            elif what == 'delete':
                known.pop(name, None)
                bound.pop(name, None)
        found = {}
        for name in missing:
            where = f', before cell {exports[name].cell.number} defines it' if name in exports else ', and nothing defines it before'
            found[name] = way_to(name, by) + where
        for name, who in by.items():
            if name not in examples or name not in known or (who and who.split('.')[0] not in known): continue
            asker, now = known[who.split('.')[0]].cell if who else cell, known[name].cell
            if asker.exported and not now.exported:
                found[name] = f'{way_to(name, by)}, and the example in cell {now.number} has put its own in its place'
            elif not who and now.exported and not cell.exported:
                found[name] = (f'`{name}` of the example in cell {examples[name].number}, '
                               f'and cell {now.number} has put the module\'s in its place')
        for name in found.keys() - {name for number, name in told if number == cell.number}:
            told.add((cell.number, name))
            yield f'cell {cell.number} needs {found[name]}'
        for name in bound.keys() & exports.keys() if not cell.exported else ():
            same = step.imports.get(name, '')   # an example may import what the module imports, or what the module is going to define
            if same and (same == exports[name].step.imports.get(name) or same.startswith('cryptoexp.')): examples.pop(name, None)
            else: examples[name] = cell
        known |= bound
        ever |= bound.keys()
