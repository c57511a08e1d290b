#!/usr/bin/env bash
# The whole table, one training after another on an idle machine: about four hours of training and as long again of sampling.
# COUNT=2000 draws fewer samples of everyone; distances fall with the count, so all rows must have one count.
set -euo pipefail
cd "$(dirname "$0")/../.."
Q=benchmarks/quality
OUT=${OUT:-runs/quality}
COUNT=${COUNT:-10000}
PY=.venv/bin/python
PEER=.venv-peers/bin/python
[ -x "$PEER" ] || "$Q/peers.sh"

rate() {  # images a second of a trainer, alone on the machine; measured once
    local file="$OUT/rate-$1"
    if [ ! -f "$file" ]; then
        mkdir -p "$OUT"
        "${@:2}" --measure --out "$OUT/measure-$1" | tee /dev/stderr | tail -n 1 | sed -E "s/.*images_per_second_here\W+([0-9.]+).*/\1/" > "$file"
    fi
    cat "$file"
}

OURS=$(rate sfumato "$PY" "$Q/train_sfumato.py")
PLAIN=$(rate transformer "$PY" "$Q/train_transformer.py")
DIFFUSERS=$(rate diffusers "$PEER" "$Q/train_diffusers.py")
DDP=$(PYTHONPATH="$Q/stubs" rate ddp "$PEER" "$Q/train_ddp.py")

for minutes in 3 10 60; do
    "$PY" "$Q/train_sfumato.py" --minutes "$minutes" --rate "$OURS" --count "$COUNT" --out "$OUT/sfumato-$minutes"
    "$PY" "$Q/train_transformer.py" --minutes "$minutes" --rate "$PLAIN" --count "$COUNT" --out "$OUT/transformer-$minutes"
done
for minutes in 3 10; do
    "$PEER" "$Q/train_diffusers.py" --minutes "$minutes" --rate "$DIFFUSERS" --count "$COUNT" --out "$OUT/diffusers-$minutes"
done
PYTHONPATH="$Q/stubs" "$PEER" "$Q/train_ddp.py" --minutes 10 --rate "$DDP" --snapshot 3 --count "$COUNT" --out "$OUT/ddp-10"
"$PY" "$Q/table.py" "$OUT"
