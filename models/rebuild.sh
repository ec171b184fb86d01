#!/usr/bin/env bash
# Rebuilds the shipped artefacts from a folder of pairs and chats; a killed part goes on where it stopped.
# usage: models/rebuild.sh FOLDER [PART...]
#   FOLDER holds corpus_chat.jsonl.gz and {truthfulqa,safety,redteam,helpful}_{train,test}.jsonl
#   PART   see `parts`; all of them, in this order, if none is named
set -euo pipefail
parts=(sae sae-again truthfulness safety redteam helpfulness
    duel-truthfulness duel-safety duel-redteam duel-helpfulness) # a duel fine-tunes a StandardRM, for hours
data=$(cd "${1:?usage: models/rebuild.sh FOLDER_OF_PAIRS_AND_CHATS [PART...]}" && pwd)
cd "$(dirname "$0")/.."
sparserm=.venv/bin/sparserm
folder=models/sae/smollm2-135m-instruct-l18
chats=("$data/corpus_chat.jsonl.gz" "$data"/{truthfulqa,safety,redteam,helpful}_train.jsonl)

sae() {
    encode "$folder"
}

sae-again() { # from another seed: how much of it is chance
    encode build/sae-again --seed 1
    "$sparserm" sae measure "$folder" "${chats[@]}" --beside build/sae-again
}

truthfulness() {
    learn truthfulness truthfulqa "Apache-2.0" --k 256 --slice kind=reference --slice kind=generated
    examine truthfulness truthfulqa helpful --layers 12 --layers 15 --layers 21 --layers 24
}

safety() {
    learn safety safety "CC BY-NC 4.0" --heads 16 --slice "support>=2"
    examine safety safety redteam --layers 12 --layers 15 --layers 21 --layers 24
}

redteam() { # other layers are not asked where texts are long
    learn redteam redteam "MIT" --heads 16
    examine redteam redteam safety
}

helpfulness() {
    learn helpfulness helpful "CC BY-NC 4.0 and Apache-2.0" --heads 16
    examine helpfulness helpful truthfulqa
}

duel-truthfulness() {
    duel truthfulness truthfulqa --sizes 100 --sizes 300 --sizes 1000 --sizes 3000
}

duel-safety() { duel safety safety; }

duel-redteam() { duel redteam redteam; }

duel-helpfulness() { duel helpfulness helpful; }

encode() { # folder, further options
    "$sparserm" sae train "${chats[@]}" --out "$1" --layer 18 --width 4608 --k 48 \
        --rows 1000000 --samples 3500000 "${@:2}"
}

learn() { # task, stem of its files, license of the pairs, further options
    "$sparserm" train "$data/$2_train.jsonl" --task "$1" --test "$data/$2_test.jsonl" \
        --sae "$folder" --license "$3" --limit 0 "${@:4}"
}

examine() { # task, stem of its files, stem of pairs unlike them, further options of the ablation
    local other elsewhere=()
    for other in truthfulqa safety redteam helpful; do
        [[ $other == "$2" ]] || elsewhere+=(--elsewhere "$data/${other}_test.jsonl")
    done
    "$sparserm" ablate "$1" "$data/$2_train.jsonl" "$data/$2_test.jsonl" --sae "$folder" \
        "${elsewhere[@]}" "${@:4}"
    "$sparserm" verify "models/$1" "$data/$2_test.jsonl" --shifted "$data/$3_test.jsonl"
    "$sparserm" stress "models/$1" "$data/$2_test.jsonl"
}

duel() { # task, stem of its files, further options
    "$sparserm" duel "$1" "$data/$2_train.jsonl" "$data/$2_test.jsonl" --sae "$folder" "${@:3}"
    "$sparserm" stock "$1" "$data/$2_train.jsonl"
}

chosen=("${@:2}")
[[ $# -gt 1 ]] || chosen=("${parts[@]}")
for part in "${chosen[@]}"; do
    [[ " ${parts[*]} " == *" $part "* ]] || { echo "no part '$part'; there are: ${parts[*]}" >&2; exit 2; }
done
for part in "${chosen[@]}"; do "$part"; done
