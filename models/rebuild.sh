#!/usr/bin/env bash
# Rebuilds the shipped reward models and the SAE of tokens from a folder of pairs and chats; a killed part resumes.
# Training removes the names of a model: readers write and test them (docs/names.md), which no script repeats.
# usage: models/rebuild.sh FOLDER [PART...]
#   FOLDER holds corpus_chat.jsonl.gz and {truthfulqa,safety,redteam,helpful}_{train,test}.jsonl
#   PART   one of `parts`; by default all of them, in this order
set -euo pipefail
parts=(sae sae-again truthfulness safety redteam helpfulness
    compare-truthfulness compare-safety compare-redteam compare-helpfulness) # fine-tunes a StandardRM, for hours
data=$(cd "${1:?usage: models/rebuild.sh FOLDER_OF_PAIRS_AND_CHATS [PART...]}" && pwd)
cd "$(dirname "$0")/.."
sparserm=.venv/bin/sparserm
python=.venv/bin/python
folder=models/sae/smollm2-135m-instruct-l18
chats=("$data/corpus_chat.jsonl.gz" "$data"/{truthfulqa,safety,redteam,helpful}_train.jsonl)

sae() {
    train_sae "$folder"
}

sae-again() { # with another seed: how much of the SAE is due to chance
    train_sae build/sae-again --seed 1
    "$sparserm" sae measure "$folder" "${chats[@]}" --compare-with build/sae-again
}

truthfulness() {
    train_model truthfulness truthfulqa "Apache-2.0" --k 32 \
        --domain "short answers to questions about common misconceptions" --slice kind=reference --slice kind=generated
    audit_model truthfulness truthfulqa helpful
}

safety() {
    train_model safety safety "CC BY-NC 4.0" --domain "answers to requests that may cause harm, in short chats" \
        --slice "support>=2"
    audit_model safety safety redteam
}

redteam() {
    train_model redteam redteam "MIT" \
        --domain "answers of an assistant in conversations that try to make it do harm"
    audit_model redteam redteam safety
}

helpfulness() { # length decides many of these pairs; texts are long, so not all are used
    train_model helpfulness helpful "CC BY-NC 4.0 and Apache-2.0" --limit 2000 --length-debiasing 1 \
        --domain "answers to general instructions and questions"
    audit_model helpfulness helpful truthfulqa
}

compare-truthfulness() {
    compare truthfulness truthfulqa --sizes 100 --sizes 300 --sizes 1000 --sizes 3000
}

compare-safety() { compare safety safety; }

compare-redteam() { compare redteam redteam; }

compare-helpfulness() { compare helpfulness helpful; }

train_sae() { # folder, further options
    "$sparserm" sae train "${chats[@]}" --out "$1" --layer 18 --width 4608 --k 48 \
        --rows 1000000 --samples 3500000 "${@:2}"
}

train_model() { # task, stem of its files, license of the pairs, further options
    "$sparserm" train "$data/$2_train.jsonl" --task "$1" --test "$data/$2_test.jsonl" \
        --license "$3" --limit 0 "${@:4}"
}

audit_model() { # task, stem of its files, stem of pairs of another task, further options of the ablation
    local other elsewhere=()
    for other in truthfulqa safety redteam helpful; do
        [[ $other == "$2" ]] || elsewhere+=(--elsewhere "$data/${other}_test.jsonl")
    done
    "$python" -m benchmarks.research.ablate "$1" "$data/$2_train.jsonl" "$data/$2_test.jsonl" \
        "${elsewhere[@]}" "${@:4}"
    "$sparserm" verify "models/$1" "$data/$2_test.jsonl" --shifted "$data/$3_test.jsonl"
    "$sparserm" stress "models/$1" "$data/$2_test.jsonl"
}

compare() { # task, stem of its files, further options
    "$python" -m benchmarks.research.compare_standard_rm "$1" "$data/$2_train.jsonl" "$data/$2_test.jsonl" \
        "${@:3}"
    "$python" -m benchmarks.research.trl_baseline "$1" "$data/$2_train.jsonl"
}

requested=("${@:2}")
[[ $# -gt 1 ]] || requested=("${parts[@]}")
for part in "${requested[@]}"; do
    [[ " ${parts[*]} " == *" $part "* ]] || { echo "no part '$part'; there are: ${parts[*]}" >&2; exit 2; }
done
for part in "${requested[@]}"; do "$part"; done
