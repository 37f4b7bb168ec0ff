#!/usr/bin/env bash
# The short runs of docs/RESULTS.md: Local, FedAvg, CoBo by the paper and by preset=evidence on one task, 3 seeds each.
#   bash benchmarks/short_runs.sh NAME [key.path=value ...]        NAME: a file of configs/cpu, without .yaml
# Each method takes, of two learning rates, the better one on validation data (seed 0).
# DATA       folder with cifar100.npz; only for dirichlet_cifar100
# RATES, METHODS, SEEDS   other learning rates, methods or seeds
set -euo pipefail
name="${1:?give the name of a config, such as regression}"
shift
methods=local,fedavg,cobo
settings=()
case "$name" in
  dirichlet_cifar100)
    rates=0.02,0.1
    settings=("task.source.file=${DATA:?set DATA to the folder with cifar100.npz}/cifar100.npz")
    ;;
  mnist5k_pathological) rates=0.005,0.02 ;;
  regression) rates=0.02,0.1 ;;
  natural_clients)
    rates=0.02,0.1
    settings=(run.engine=vectorised run.rounds=100)
    ;;
  lstm_text)
    rates=0.003,0.01
    methods+=,oracle # its clusters are known
    settings=(run.rounds=120 run.eval_every=40 data.batch_size=32 task.source.file=runs/fragments.csv)
    ;;
  vit_dirichlet)
    rates=0.001,0.003
    settings=(task.source.name=mnist5k run.rounds=80 run.eval_every=40 run.engine=vectorised data.batch_size=16
      model.patch=7 model.width=32)
    ;;
  *)
    echo "error: $name is none of dirichlet_cifar100, mnist5k_pathological, regression, natural_clients, lstm_text," \
      "vit_dirichlet" >&2
    exit 2
    ;;
esac
grid=(--config "configs/cpu/$name.yaml" run.threads=1 "${settings[@]}" "$@" "optimizer.lr=${RATES:-$rates}" seed=0)
python -m cobo_dist.sweep "${grid[@]}" --out "runs/short/${name}_rates" "algorithm.name=${METHODS:-$methods}"
python -m cobo_dist.sweep "${grid[@]}" --out "runs/short/${name}_evidence_rates" preset=evidence
python -m cobo_dist.sweep --config "runs/short/${name}_rates"/best/*.yaml \
  "runs/short/${name}_evidence_rates"/best/*.yaml --out "runs/short/$name" "seed=${SEEDS:-0,1,2}"
python -m cobo_dist.report "runs/short/$name"/*-s? --out "report/$name"
