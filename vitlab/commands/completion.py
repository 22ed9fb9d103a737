"""`vitlab completion`: a script that lets a shell complete every command line of `vitlab`.

It is made from the tables that parsing reads, and is all text: Python does not start at a tab.
"""

import importlib
from collections.abc import Iterator

from vitlab.commands import cli
from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output

VERB = Verb(
    "completion",
    ("SHELL",),
    "Prints a script with which the shell completes verbs, options, their legal values, files and "
    "folders. The examples install it from the next shell on; again after an update of vitlab.",
    (Argument("SHELL", "which shell", {"bash": "", "zsh": "", "fish": ""}),),
    (),
    (
        "vitlab completion bash >> ~/.bashrc",
        "vitlab completion zsh >> ~/.zshrc",
        "vitlab completion fish > ~/.config/fish/completions/vitlab.fish",
    ),
    "the script, to standard output.",
)


def run(given: Given, output: Output) -> None:
    """Prints the script of a shell."""
    (shell,) = given.plain
    verbs = [importlib.import_module(f"vitlab.commands.{verb}").VERB for verb in cli.VERBS]
    script = "\n".join({"bash": bash, "zsh": zsh, "fish": fish}[shell](verbs))
    output.text(script)
    output.document({"shell": shell, "script": script})


def bash(verbs: list[Verb]) -> Iterator[str]:
    """A function that looks up what may stand at the cursor, by verb and place or option."""
    yield _BASH_START.replace("FLAGS", "|".join(_flags(verbs)))
    yield f"    0/) words='{' '.join(cli.VERBS)} --help --version' ;;"
    for verb in verbs:
        for option in verb.options:
            if option.value:
                yield f"    {verb.name}/--{option.name}) {_bash_value(option)} ;;"
        for place, argument in enumerate(verb.arguments):
            where = "*" if argument.repeated else place
            yield f"    {verb.name}/{where}) {_bash_value(argument)} ;;"
    yield "    esac"
    yield '    [[ $current == -* && ! $option && $verb ]] && case "$verb/$first" in'
    for verb in verbs:
        firsts = sorted({option.of for option in verb.options if option.of})
        for first in (*firsts, "*"):
            names = " ".join(f"--{option.name}" for option in verb.options_after(first))
            yield f"    {verb.name}/{first}) words='{names}' kind= ;;"
    yield _BASH_END


_BASH_START = """\
# Completion of vitlab for bash, made by `vitlab completion bash`.
_vitlab() {
    local current=${COMP_WORDS[COMP_CWORD]} verb= first= option= place=0 words= kind= i word
    ((COMP_CWORD > 1)) && verb=${COMP_WORDS[1]}
    for ((i = 2; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # To bash, SOURCE:PATH is three words, and --NAME=VALUE too.
        [[ $word == : || ${COMP_WORDS[i + 1]} == : ]] && continue
        if [[ $option ]]; then
            [[ $word == = ]] || option=
            continue
        fi
        case $word in
            FLAGS) ;;
            --*) option=$word ;;
            *) ((place++)) || first=$word ;;
        esac
    done
    [[ $current == [=:] ]] && current=
    case "${verb:-0}/${option:-${verb:+$place}}" in"""

_BASH_END = """\
    esac
    COMPREPLY=()
    [[ $kind ]] && compopt -o filenames 2> /dev/null
    current=${current/#\\~\\//$HOME/}
    # Line by line, since names have blanks; what bash 3 of macOS can do too.
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(compgen ${kind:+-A $kind} -W "$words" -- "$current")
}
complete -F _vitlab vitlab"""


def _bash_value(entry: Argument | Option) -> str:
    if entry.choices:
        return f"words='{' '.join(entry.choices)}'"
    kinds = {"file": "file", "folder": "directory", "": ""}
    return f"kind={kinds[entry.path]}"


def zsh(verbs: list[Verb]) -> Iterator[str]:
    """`_arguments` of each verb, with what everything does beside it."""
    yield "# Completion of vitlab for zsh, made by `vitlab completion zsh`."
    yield "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"
    # A path may stand behind a colon, as in folder:PATH.
    yield "_vitlab_files() { compset -P '*[:=]'; _files }"
    yield "_vitlab() {"
    yield "  local -a verbs=("
    yield from (f"    {_quoted(f'{verb}:{does}')}" for verb, does in cli.VERBS.items())
    yield "  )"
    yield "  if (( CURRENT == 2 )); then"
    yield "    _describe verb verbs"
    yield "    compadd -- --help --version"
    yield "    return"
    yield "  fi"
    yield "  local verb=$words[2]"
    yield "  shift words; (( CURRENT-- ))"
    yield "  case $verb in"
    for verb in verbs:
        yield f"  {verb.name})"
        yield "    _arguments -S \\"
        for place, argument in enumerate(verb.arguments, 1):
            where = "*" if argument.repeated else place
            spec = f"{where}:{argument.name.lower()}:{_zsh_value(argument)}"
            yield f"      {_quoted(spec)} \\"
        for option in verb.options_after("*") + tuple(o for o in verb.options if o.of):
            spec = f"--{option.name}[{_zsh_text(_short(option.does))}]"
            if option.value:
                name = option.value.lower().strip(",.")
                spec = spec.replace("[", "=[", 1) + f":{name}:{_zsh_value(option)}"
            yield f"      {_quoted(spec)} \\"
        yield "      ;;"
    yield "  esac"
    yield "}"
    yield "compdef _vitlab vitlab"


def _zsh_value(entry: Argument | Option) -> str:
    if entry.choices:
        told = (
            f"{name}\\:{_zsh_text(_short(does) or name)!r}" for name, does in entry.choices.items()
        )
        return (
            f"(({' '.join(told)}))"
            if any(entry.choices.values())
            else f"({' '.join(entry.choices)})"
        )
    return {"file": "_vitlab_files", "folder": "_files -/", "": " "}[entry.path]


def _zsh_text(text: str) -> str:
    """Without what means something to `_arguments`."""
    return text.replace("'", "").translate(str.maketrans("[]:()\\", "      "))


def fish(verbs: list[Verb]) -> Iterator[str]:
    """A `complete` for each thing that there is."""
    yield "# Completion of vitlab for fish, made by `vitlab completion fish`."
    yield _FISH_START.replace("FLAGS", " ".join(_flags(verbs)))
    for verb, does in cli.VERBS.items():
        yield f"complete -c vitlab -n __fish_use_subcommand -a {verb} -d {_quoted(does)}"
    yield "complete -c vitlab -n __fish_use_subcommand -l help -l version"
    for verb in verbs:
        start = f"complete -c vitlab -n '__vitlab_at {verb.name}"
        for place, argument in enumerate(verb.arguments):
            where = "-ge" if argument.repeated else "-eq"
            yield f"{start} {where} {place}' {_fish_value(argument)}"
        for option in (*verb.options_after("*"), *(o for o in verb.options if o.of)):
            takes = f" -r {_fish_value(option)}" if option.value else ""
            yield f"{start}' -l {option.name}{takes} -d {_quoted(_short(option.does))}"


_FISH_START = """\
complete -c vitlab -f
function __vitlab_at -d 'whether this verb, and so many plain arguments, stand before the cursor'
    set -l words (commandline -opc)
    test "$words[2]" = $argv[1]; or return
    set -q argv[2]; or return 0
    set -l place 0
    set -l option
    for word in $words[3..]
        if set -q option[1]
            set -e option
        else if contains -- $word FLAGS; or string match -q -- '--*=*' $word
            continue
        else if string match -q -- '--*' $word
            set option $word
        else
            set place (math $place + 1)
        end
    end
    test $place $argv[2..]
end"""


def _fish_value(entry: Argument | Option) -> str:
    if entry.choices:
        told = (f'{name}\\t"{_fish_text(does)}"' for name, does in entry.choices.items())
        return f"-f -a {_quoted(' '.join(told))}"
    folders = "-f -a '(__fish_complete_directories (commandline -ct))'"
    return {"file": "-F", "folder": folders, "": "-f"}[entry.path]


def _fish_text(text: str) -> str:
    """Without what means something between double quotes."""
    return _short(text).translate(str.maketrans('"$\\', "   "))


def _flags(verbs: list[Verb]) -> list[str]:
    """Options of any verb that take no value."""
    options = [option for verb in verbs for option in (*verb.options, *verb.options_after(""))]
    return sorted({f"--{option.name}" for option in options if not option.value})


def _short(text: str) -> str:
    """Its first clause."""
    return text.partition("; ")[0].partition(". ")[0][:70]


def _quoted(text: str) -> str:
    """For the shells: they agree on quotes that end, an escaped one, and quotes that go on."""
    return "'" + text.replace("'", "'\\''") + "'"
