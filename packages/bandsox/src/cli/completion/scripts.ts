/**
 * What each shell needs to ask `bandsox __complete` what may follow, and to show the answer.
 *
 * The scripts know nothing of the commands. Static ones, generated with all words in them, would answer without starting Node:
 * measured, a Tab takes 145 ms here (80 of them Node's own start), or 235 where names of sandboxes or images are read, against
 * some ms. But each shell would then need its own reader of command lines (where do options end, which one takes a value, which words
 * are the guest's), in three languages, none of which the library's tests could reach; names would cost a start of Node all the
 * same; and a script that was kept in a file would go on telling of the commands of the version that wrote it.
 *
 * `__complete` gets the words up to the cursor, the last of which may be empty; see `completionText` for what it prints.
 */

export const shells = ['bash', 'zsh', 'fish'] as const
export type Shell = (typeof shells)[number]

/**
 * Bash splits words also at `=`, `:` and `@`, of which references of images and `--option=value` are full, and wants back only
 * what follows the last of these. Candidates never meet `compgen -W`, which would expand what is in them.
 */
const bash = `# Completion of bandsox for bash: source <(bandsox completion bash)
_bandsox() {
  local line=\${COMP_LINE:0:COMP_POINT} words=() word gap i
  for ((i = 0; i <= COMP_CWORD; i++)); do
    gap=\${line%%[![:blank:]]*}
    line=\${line#"$gap"}
    word=\${COMP_WORDS[i]}
    ((i < COMP_CWORD)) || word=$line # up to the cursor
    line=\${line#"$word"}
    if ((i == 0)) || [[ -n $gap ]]; then words+=("$word"); else words[-1]+=$word; fi
  done
  words=("\${words[@]//[\\"\\'\\\\]/}") # quotes
  local current=\${words[-1]} breaks=\${COMP_WORDBREAKS//[^=:@]/} head= value
  if [[ -n $breaks && $current == *["$breaks"]* ]]; then head=\${current%"\${current##*["$breaks"]}"}; fi
  COMPREPLY=()
  while IFS=$'\\t' read -r value _; do
    case $value in
      '<files>') compopt -o default ;;
      '<folders>') compopt -o dirnames ;;
      "$current"*) COMPREPLY+=("\${value#"$head"}") ;;
    esac
  done < <(bandsox __complete -- "\${words[@]:1}" 2>/dev/null </dev/null)
}
complete -F _bandsox bandsox
`

/** `(Q)` takes quotes away, and with `@` leaves empty words. `_describe` wants colons in values behind backslashes. */
const zsh = `#compdef bandsox
# Completion of bandsox for zsh: bandsox completion zsh > "\${fpath[1]}/_bandsox"
_bandsox() {
  local value description paths
  local -a found
  while IFS=$'\\t' read -r value description; do
    case $value in
      '<files>') paths=_files ;;
      '<folders>') paths='_files -/' ;;
      *) found+=("\${value//:/\\\\:}\${description:+:$description}") ;;
    esac
  done < <(bandsox __complete -- "\${(@Q)words[2,CURRENT-1]}" "\${(Q)PREFIX}" 2>/dev/null </dev/null)
  if [[ -n $paths ]]; then
    [[ $PREFIX == --*=* ]] && compset -P '*='
    \${=paths}
  else
    _describe -t values value found
  fi
}
if [[ \${funcstack[1]} == _bandsox ]]; then _bandsox "$@"; else compdef _bandsox bandsox; fi
`

const fish = `# Completion of bandsox for fish: bandsox completion fish > ~/.config/fish/completions/bandsox.fish
function __bandsox_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l current (commandline -ct)
    set -l head (string match -r -- '^--[^=]*=' "$current")
    for line in (bandsox __complete -- $words "$current" 2>/dev/null </dev/null)
        switch $line
            case '<files>'
                for path in (__fish_complete_path (string replace -- "$head" '' "$current"))
                    printf '%s\\n' "$head$path"
                end
            case '<folders>'
                for path in (__fish_complete_directories (string replace -- "$head" '' "$current"))
                    printf '%s\\n' "$head$path"
                end
            case '*'
                printf '%s\\n' $line
        end
    end
end
complete -c bandsox -f -k -a '(__bandsox_complete)'
`

export const completionScripts: Record<Shell, string> = { bash, zsh, fish }
