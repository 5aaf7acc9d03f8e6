"""``tunesmith completion``: a script that lets a shell complete verbs, their options, settings and files.

The script holds all names itself, so that completing starts no Python. Names come from where they are defined: verbs
from ``VERBS``, options from each verb's own help, settings and their values from the schema.
"""

from __future__ import annotations

import importlib
import io
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from tunesmith.cli.arguments import COMMON, VerbParser
from tunesmith.cli.output import say_file
from tunesmith.config.names import leaf_paths, leaf_type

SHELLS = ("bash", "zsh", "fish")
HOW = """Load it with   source <(tunesmith completion bash)   in ~/.bashrc or ~/.zshrc (zsh: after compinit); for fish
write it to ~/.config/fish/completions/tunesmith.fish."""


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow a verb: its actions, its own options, and whether settings may."""

    actions: tuple[str, ...]
    options: tuple[str, ...]
    takes_settings: bool


def run(argv: Sequence[str]) -> int:
    """Print the script for one shell."""
    parser = VerbParser("completion", f"Print a completion script for a shell. {HOW}", takes_settings=False)
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    options = parser.parse_all(argv)
    say_file(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The script for one of ``SHELLS``."""
    from tunesmith.cli.main import VERBS

    words = {verb: words_of(verb) for verb in VERBS}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](VERBS, words)


# the names ------------------------------------------------------------------------------------------------------------


def words_of(verb: str) -> Words:
    """What may follow a verb, as its help says it."""
    text = _help(verb).partition(COMMON)[0]
    actions = dict.fromkeys(re.findall(rf"^  tunesmith {verb} ([a-z][\w-]*)", text, re.MULTILINE))
    texts = [text, *(_help(verb, action) for action in actions)]
    options = {option for each in texts for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", each)}
    if verb != "config":
        options -= {"--list"}  # the help of other verbs only points to it
    return Words(tuple(actions), tuple(sorted(options)), "Every setting may follow" in " ".join(text.split()))


def _help(*words: str) -> str:
    """What ``tunesmith WORDS --help`` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        importlib.import_module(f"tunesmith.cli.{words[0]}").run([*words[1:], "--help"])
    return printed.getvalue()


def settings() -> dict[str, tuple[str, ...]]:
    """Every setting by its short name -> the values that it may have, where they can be counted."""
    return {path.partition(".")[2]: tuple(_values(leaf_type(path))) for path in leaf_paths()}


def _values(annotation: Any) -> list[str]:
    """The words among the values of a type."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation) if isinstance(value, str)]
    if annotation is bool:
        return ["true", "false"]
    return [value for part in get_args(annotation) if not isinstance(part, str) for value in _values(part)]


def _dotted() -> str:
    return " ".join(f"{path}=" for path in leaf_paths())


def _dashed() -> str:
    switches = (f"--no_{name}" for name, values in settings().items() if "false" in values)
    return " ".join([*(f"--{name}" for name in settings()), *switches])


# the scripts ----------------------------------------------------------------------------------------------------------

_BASH = """# completion of tunesmith for bash; made by `tunesmith completion bash`
_tunesmith() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}
    local actions= options= values= takes= name= IFS=$' \\t\\n'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W @VERBS@ -- "$cur"))
        return
    fi
    case $verb in
@CASES@
    esac
    if [[ $cur == '=' ]]; then
        cur= name=$prev
    elif [[ $prev == '=' ]]; then
        name=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ $prev == --* ]]; then
        name=$prev
    fi
    name=${name#--}
    if [[ $takes ]]; then
        case ${name##*.} in
@VALUES@
        esac
    fi
    if [[ $values ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$cur"))
    elif [[ $cur == -* ]]; then
        [[ $takes ]] && options+=" "@DASHED@
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ $takes && $cur == [a-z]*.* && $cur != */* ]]; then
        COMPREPLY=($(compgen -W @DOTTED@ -- "$cur"))
        if ((${#COMPREPLY[@]})); then
            compopt -o nospace
            return
        fi
    fi
    if [[ $cur != -* && ! $values ]]; then
        ((COMP_CWORD == 2)) && COMPREPLY+=($(compgen -W "$actions" -- "$cur"))
        local IFS=$'\\n'
        compopt -o filenames
        COMPREPLY+=($(compgen -f -- "$cur"))
    fi
}
complete -F _tunesmith tunesmith
"""


def _bash(verbs: dict[str, str], words: dict[str, Words]) -> str:
    cases = [
        f"        {verb}) actions={shlex.quote(' '.join(each.actions))} options={shlex.quote(' '.join(each.options))}"
        f"{' takes=1' if each.takes_settings else ''} ;;"
        for verb, each in words.items()
    ]
    values = [f"            {name}) values='{' '.join(known)}' ;;" for name, known in settings().items() if known]
    return _filled(
        _BASH,
        VERBS=shlex.quote(" ".join(verbs)),
        CASES="\n".join(cases),
        VALUES="\n".join(values),
        DASHED=shlex.quote(_dashed()),
        DOTTED=shlex.quote(_dotted()),
    )


_ZSH = """#compdef tunesmith
# completion of tunesmith for zsh; made by `tunesmith completion zsh`
_tunesmith() {
    local -a verbs actions options
    local takes=
    if (( CURRENT == 2 )); then
        verbs=(
@VERBS@
        )
        _describe verb verbs
        return
    fi
    case $words[2] in
@CASES@
    esac
    if [[ $takes == 1 ]]; then
        options+=(@DASHED@)
        case ${words[CURRENT-1]#--} in
@VALUES@
        esac
    fi
    if [[ $PREFIX == -* ]]; then
        compadd -- $options
    else
        (( CURRENT == 3 )) && compadd -- $actions
        [[ $takes == 1 && $PREFIX == *.* ]] && compadd -S '' -- @DOTTED@
        _files
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _tunesmith "$@"
else
    compdef _tunesmith tunesmith
fi
"""


def _zsh(verbs: dict[str, str], words: dict[str, Words]) -> str:
    cases = [
        f"        {verb}) actions=({' '.join(each.actions)}); options=({' '.join(each.options)})"
        f"{'; takes=1' if each.takes_settings else ''} ;;"
        for verb, each in words.items()
    ]
    known = [(name, values) for name, values in settings().items() if values]
    return _filled(
        _ZSH,
        VERBS="\n".join(f"            {shlex.quote(f'{verb}:{what}')}" for verb, what in verbs.items()),
        CASES="\n".join(cases),
        VALUES="\n".join(f"            {name}) compadd -- {' '.join(values)}; return ;;" for name, values in known),
        DASHED=_dashed(),
        DOTTED=_dotted(),
    )


def _fish(verbs: dict[str, str], words: dict[str, Words]) -> str:
    start = "complete -c tunesmith"
    lines = ["# completion of tunesmith for fish; made by `tunesmith completion fish`"]
    lines += [f"{start} -f -n __fish_use_subcommand -a {verb} -d {shlex.quote(what)}" for verb, what in verbs.items()]
    for verb, each in words.items():
        after = f"{start} -n '__fish_seen_subcommand_from {verb}'"
        lines += [f"{after} -a {action}" for action in each.actions]
        lines += [f"{after} -l {option.removeprefix('--')}" for option in each.options]
    after = f"{start} -n '__fish_seen_subcommand_from {' '.join(verb for verb in words if words[verb].takes_settings)}'"
    for name, values in settings().items():
        given = f"-x -a {shlex.quote(' '.join(values))}" if values else "-r"
        lines.append(f"{after} -l {name} {given}")
    lines += [f"{after} -l {name.removeprefix('--')}" for name in _dashed().split() if name.startswith("--no_")]
    return "\n".join(lines) + "\n"


def _filled(template: str, **parts: str) -> str:
    for name, part in parts.items():
        template = template.replace(f"@{name}@", part)
    return template
