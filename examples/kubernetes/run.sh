#!/bin/bash
# Makes all parts, then one manifest, and checks every byte.
set -euo pipefail
cd "$(dirname "$0")"
kubectl apply -f data.yaml
kubectl apply -f synth.yaml
kubectl wait --for=condition=complete --timeout=24h job/lensmith-synth
kubectl apply -f merge.yaml
kubectl wait --for=condition=complete --timeout=4h job/lensmith-merge
