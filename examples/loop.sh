#!/usr/bin/env bash
# A trainer loop for R2M Serve in curl and jq, around a policy that is made up. docs/api.md tells of
# every call.
set -euo pipefail
export LC_ALL=C

url=http://127.0.0.1:8080 run=shell-loop steps=3 pause=0.5
width=8 tokens=12 # of the policy's hidden states: D_p and S

usage() {
  cat <<'END'
usage: loop.sh [--url URL] [--run NAME] [--steps N] [--pause SECONDS]

Takes N more steps of a run, which is created where it is not there: scores rollouts, "updates" a
made-up policy, aligns the reward head with fresh hidden states. Prints a line a step, then the
heads. The same run's name again goes on at its next step.

  --url URL        the server (http://127.0.0.1:8080)
  --run NAME       the run (shell-loop)
  --steps N        how many steps to take (3)
  --pause SECONDS  before the first repeat of a failed call; doubled for each further one (0.5)
END
}

while [ $# -gt 0 ]; do
  case $1 in
    --url) url=${2%/} ;;
    --run) run=$2 ;;
    --steps) steps=$2 ;;
    --pause) pause=$2 ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift 2
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# call METHOD PATH [FILE]: prints the answer. What may pass is tried again with the very same body:
# create and score do no harm twice, and align is answered once for each step.
call() {
  local try status again after wait=$pause
  for try in 1 2 3 4 5 6; do
    rm -f "$tmp/answer" && : >"$tmp/headers"
    # 000: no whole answer came. Nobody knows whether the work was done, and nobody has to.
    status=$(curl -sS -X "$1" ${3:+-H content-type:application/json --data-binary "@$3"} \
      --max-time 60 -D "$tmp/headers" -o "$tmp/answer" -w '%{http_code}' "$url$2" 2>"$tmp/said") ||
      status=000
    again=$(jq -r '.error.retryable' "$tmp/answer" 2>/dev/null) || again=unknown
    case $status:$again in
      2*) cat "$tmp/answer" && return ;;
      000:* | *:true) ;;
      429:unknown | 50[234]:unknown) ;; # not the server's own words: a gateway's
      *) break ;;
    esac
    after=$(tr -d '\r' <"$tmp/headers" | awk 'tolower($1) == "retry-after:" {print $2 + 0}')
    [ $try = 6 ] && break
    echo "$1 $2: $status, once more in ${after:-$wait} s" >&2
    sleep "${after:-$wait}"
    wait=$(awk "BEGIN {print 2 * $wait}")
  done
  echo "$1 $2: $status after $try attempts: $(cat "$tmp/answer" "$tmp/said" 2>/dev/null)" >&2
  exit 1
}

# states SEED: the policy's last-layer states of one prompt + response: S x D_p numbers in float32,
# little-endian, as base64. Made up here, between 0.5 and 1 in size.
states() {
  printf %b "$(awk -v seed="$1" -v count=$((tokens * width)) 'BEGIN {
    srand(seed)
    while (count--) printf "\\0%o\\0%o\\0%o\\0%o",
      int(rand() * 256), int(rand() * 256), int(rand() * 128), rand() < 0.5 ? 63 : 191
  }')" | base64 | tr -d '\n'
}

# rollouts STEP AGE: a line for each sample: group, id, prompt, response, hidden states. The states
# are those of the policy before (0) or after (1) its update; the texts are the same.
rollouts() {
  local group member
  for group in 1 2; do
    for member in 1 2 3 4; do
      printf '%s\t' "q$group" "q$group-$member" "What is $group times $1?" \
        "It is $((group * $1 + member - 2))."
      states "$1$group$member$2"
      echo
    done
  done
}
samples='[inputs | split("\t") | {group: .[0], id: .[1], prompt: .[2], response: .[3],
  feedback: {dtype: "float32", shape: [$tokens, $width], data: .[4]}}]'
as_json() { # as_json FILTER [OPTION...]: the lines of rollouts as a request
  jq -Rn --argjson step "$step" --argjson tokens "$tokens" --argjson width "$width" "${@:2}" "$1"
}

jq -n --arg run "$run" --argjson width "$width" '{run: $run, policy: {hidden_size: $width},
  method: {width: 16, learning_rate: 0.0003}}' >"$tmp/create.json"
call POST /v1/runs "$tmp/create.json" >"$tmp/run.json" # there already: the run as it stands
first=$(jq .next_step "$tmp/run.json")

for ((step = first; step < first + steps; step++)); do
  # 1. Score this step's rollouts. `step` names the head: the one that was live after step - 1.
  rollouts "$step" 0 | as_json "{step: \$step, samples: $samples}" >"$tmp/score.json"
  call POST "/v1/runs/$run/score" "$tmp/score.json" >"$tmp/scores.json"
  # A sample that could not be scored has an error and no number: it is no reward, and above all
  # not 0. Its whole group is left out.
  jq -r '.scores[] | select(.error) | "no reward for \(.id): \(.error.message)"' "$tmp/scores.json" >&2
  mean=$(jq -er '[.scores[].reward | numbers] | add / length * 1e4 | round / 1e4' "$tmp/scores.json") ||
    { echo "no sample of step $step has a reward" >&2 && exit 1; }

  # 2. A real trainer makes advantages of the rewards and updates its policy here.

  # 3. Align with the updated policy's states of the same texts.
  rollouts "$step" 1 | as_json "[\$scored[0].scores[] | select(.error).id] as \$failed
    | {step: \$step, groups: [$samples | group_by(.group)[]
        | select(all(.id != \$failed[])) | {id: .[0].group, samples: .}]}" \
    --slurpfile scored "$tmp/scores.json" >"$tmp/align.json"
  call POST "/v1/runs/$run/align" "$tmp/align.json" >"$tmp/aligned.json"
  jq -r --arg mean "$mean" '"step \(.step)  \(.verdict)  head \(.head)  mean reward \($mean)"' \
    "$tmp/aligned.json"
done

call GET "/v1/runs/$run/heads" | jq -r \
  '.heads[] | "head \(.head)  parent \(.parent // "-")  step \(.step)  \(.verdict): \(.reason)"'
