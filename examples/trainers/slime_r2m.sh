#!/usr/bin/env bash
# slime with R2M as its remote reward model: the same arguments, and two more.
#
#   R2M_URL=http://127.0.0.1:8080 bash slime_r2m.sh ...what you pass to train.py today
#
# slime sends texts alone: vanilla rewards, or with R2M_RUN those of a run with feedback backbone or
# none. Started in slime's folder. Not run here: it needs slime's GPUs; docs/trainers.md.
set -euo pipefail

: "${R2M_URL:?set R2M_URL to the server, such as http://127.0.0.1:8080}"
url=${R2M_URL%/}${R2M_RUN:+/runs/$R2M_RUN}/slime
exec "${PYTHON:-python3}" train.py --rm-type remote_rm --rm-url "$url" "$@"
