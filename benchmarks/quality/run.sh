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

for minutes in 3 10 60; do
    "$PY" "$Q/train_sfumato.py" --minutes "$minutes" --count "$COUNT" --out "$OUT/sfumato-$minutes"
    "$PY" "$Q/train_transformer.py" --minutes "$minutes" --count "$COUNT" --out "$OUT/transformer-$minutes"
done
for minutes in 3 10; do
    "$PEER" "$Q/train_diffusers.py" --minutes "$minutes" --count "$COUNT" --out "$OUT/diffusers-$minutes"
done
PYTHONPATH="$Q/stubs" "$PEER" "$Q/train_ddp.py" --minutes 10 --snapshot 3 --count "$COUNT" --out "$OUT/ddp-10"
"$PY" "$Q/table.py" "$OUT"
