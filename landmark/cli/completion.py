"""Completion scripts for shells: `landmark completion bash`, made from the commands and their options."""

from collections.abc import Mapping

from landmark.cli.commands import Command
from landmark.cli.options import options_of, switched_off
from landmark.config import UserError, nearest

SHELLS = ("bash", "zsh", "fish")
GLOBAL = ("--config", "--help", "--help-all", "--json", "--quiet", "--verbose")


def completion(shell: str, commands: Mapping[str, Command]) -> str:
    """Return the script for a shell; raises UserError for an unknown one."""
    if shell not in SHELLS:
        raise UserError(f"completion: unknown shell {shell!r}; {nearest(shell, SHELLS)}")
    flags = {name: _flags(command) for name, command in commands.items()}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, flags)


def _flags(command: Command) -> list[str]:
    found = list(GLOBAL) + (["--recipe"] if command.default is not None else [])
    for option in options_of(command.config):
        found += [option.flag, *([option.short] if option.short else [])]
        found += [switched_off(option.flag)] if option.values == 0 and option.default is True else []
    return sorted(found)


def _words(commands: Mapping[str, Command]) -> list[str]:
    return [*dict.fromkeys(name.partition(" ")[0] for name in commands), "completion"]


def _bash(commands: Mapping[str, Command], flags: Mapping[str, list[str]]) -> str:
    cases = "\n".join(f'        "{name}") words="{" ".join(found)}" ;;' for name, found in flags.items())
    groups: dict[str, list[str]] = {}
    for name in commands:
        first, _, second = name.partition(" ")
        groups.setdefault(first, []).extend([second] if second else [])
    actions = "\n".join(
        f'        "{first}") words="{" ".join(seconds)}" ;;' for first, seconds in groups.items() if seconds
    )
    return f"""# landmark completion for bash: source <(landmark completion bash)
_landmark() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(_words(commands))} --help --version" -- "$current"))
        return
    fi
    case "$command ${{COMP_WORDS[2]}}" in
        {"|".join(f'"{name}"' for name in commands if " " in name)}) command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command" in
{cases}
{actions}
        completion) words="{" ".join(SHELLS)}" ;;
    esac
    if [[ "$current" == -* ]] || [ "$command" = completion ] || [[ -n "$words" && "$words" != -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -F _landmark landmark
"""


def _zsh(commands: Mapping[str, Command], flags: Mapping[str, list[str]]) -> str:
    script = _bash(commands, flags).split("\n", 1)[1]
    return f"# landmark completion for zsh: source <(landmark completion zsh)\nautoload -U +X bashcompinit && bashcompinit\n{script}"


def _fish(commands: Mapping[str, Command], flags: Mapping[str, list[str]]) -> str:
    lines = [
        "# landmark completion for fish: landmark completion fish | source",
        f"complete -c landmark -n __fish_use_subcommand -f -a '{' '.join(_words(commands))}'",
        f"complete -c landmark -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'",
    ]
    for name, found in flags.items():
        first, _, second = name.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            lines.append(f"complete -c landmark -n '{seen}' -f -a '{second}'")
            seen += f"; and __fish_seen_subcommand_from {second}"
        for flag in found:
            kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            lines.append(f"complete -c landmark -n '{seen}' {kind}")
    return "\n".join(lines) + "\n"
