#!/usr/bin/env bash
# A real SLURM on this one machine, for development and for the tests marked "slurm" (Debian's slurm-wlm and munge, as
# root, without systemd). Nothing of it is meant for a machine that others compute on.
#
#   bash slurm/dev_cluster.sh start [--nodes N]   bring it up (N slurmd on this machine, default 1) and return
#   bash slurm/dev_cluster.sh status              one line; exit status 0 where a controller answers, else 1
#   bash slurm/dev_cluster.sh stop                cancel all of its jobs, end its daemons, remove its files
#
# Each node pretends to have 8 CPUs, 500 GB and two GPUs (/dev/null and /dev/zero: SLURM counts them and sets
# CUDA_VISIBLE_DEVICES, nobody can compute on them). All state is under /run/slt-dev-cluster; /etc/slurm/slurm.conf is a
# link into it while the cluster runs, so that sbatch and squeue need no setting. The partition is called gpu.
set -euo pipefail

STATE=/run/slt-dev-cluster
CONF=/etc/slurm/slurm.conf
HOST="$(hostname -s)"
PACKAGES="slurm-wlm munge"

die() {
    printf 'dev_cluster.sh: %s\n' "$1" >&2
    exit 1
}

usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# ours: this machine's slurm.conf is the one that this script wrote.
ours() { [ "$(readlink "$CONF" 2>/dev/null)" = "$STATE/slurm.conf" ]; }

# up: the controller answers and every node has registered.
up() {
    ours && timeout 10 scontrol ping 2>/dev/null | grep -q 'is UP' || return 1
    ! timeout 10 sinfo --noheader --Node --format='%T' | grep -Eqv '^(idle|mixed|allocated|completing)$'
}

# poll SECONDS COMMAND...: until the command succeeds; fails after that time.
poll() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# nodes: the names of the nodes. The first is this machine; the others need addresses of their own (see hosts_add).
nodes() {
    local i
    printf '%s\n' "$HOST"
    for ((i = 2; i <= $1; i++)); do printf 'sltnode%d\n' "$i"; done
}

# The tasks of a job find its first node by name, so the names of pretended nodes must resolve.
hosts_add() {
    local name
    for name in $(nodes "$1"); do
        getent hosts "$name" >/dev/null || printf '127.0.0.1 %s # slt-dev-cluster\n' "$name" >>/etc/hosts
    done
}

hosts_remove() {
    # in place, not with sed -i: containers mount this file, and a mount point cannot be replaced
    local kept
    if grep -q '# slt-dev-cluster$' /etc/hosts; then
        kept="$(grep -v '# slt-dev-cluster$' /etc/hosts)"
        printf '%s\n' "$kept" >/etc/hosts
    fi
}

write_conf() {
    local name port=6819
    cat >"$STATE/slurm.conf" <<CONF
ClusterName=slt-dev
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdPidFile=$STATE/slurmd.%n.pid
SlurmdLogFile=$STATE/slurmd.%n.log
SlurmdSpoolDir=$STATE/spool.%n
StateSaveLocation=$STATE/state
SlurmUser=root
AuthType=auth/munge
# also how long a requeued job has to wait before it may start again: 120 seconds where nothing is said
AuthInfo=cred_expire=15
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
JobRequeue=1
# what a job has between SIGTERM and SIGKILL
KillWait=30
# a machine that is busy with tests is slow to end processes; after the default of 60 seconds the node would be drained
UnkillableStepTimeout=600
MessageTimeout=10
# finished jobs are shown for an hour: without accounting nothing else knows their exit status
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# pretended CPUs and memory, where the machine has less
SlurmdParameters=config_overrides
CONF
    : >"$STATE/gres.conf"
    for name in $(nodes "$1"); do
        printf 'NodeName=%s NodeHostname=%s NodeAddr=127.0.0.1 Port=%d %s\n' "$name" "$HOST" "$port" \
            'CPUs=8 RealMemory=500000 Gres=gpu:2 State=UNKNOWN' >>"$STATE/slurm.conf"
        printf 'NodeName=%s Name=gpu File=/dev/%s\n' "$name" null "$name" zero >>"$STATE/gres.conf"
        port=$((port + 1))
        [ "$port" -ne 6820 ] || port=6821 # slurmdbd's
    done
    echo 'PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES' >>"$STATE/slurm.conf"
}

munge_answers() { munge --no-input 2>/dev/null | unmunge >/dev/null 2>&1; }

start_munge() {
    ! munge_answers || return 0
    [ -s /etc/munge/munge.key ] || runuser -u munge -- mungekey
    install -d -o munge -g munge -m 0755 /run/munge
    # a machine that stopped without ceremony leaves the socket behind: --force
    runuser -u munge -- setsid munged --force --pid-file=/run/munge/slt-dev-cluster.pid </dev/null >/dev/null 2>&1
    poll 20 munge_answers || die "munged does not answer; see /var/log/munge/munged.log"
}

# end PIDFILE NAME: the daemon of that name with this process id, if it is still one.
end() {
    local pid
    pid="$(cat "$1" 2>/dev/null)" || return 0
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
    kill "$pid"
    poll 15 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
}

gone() { ! kill -0 "$1" 2>/dev/null; }

end_daemons() {
    local file
    for file in "$STATE"/slurmd.*.pid; do end "$file" slurmd; done
    end "$STATE/slurmctld.pid" slurmctld
}

no_jobs() { [ -z "$(timeout 10 squeue --noheader 2>/dev/null)" ]; }

start() {
    local command count name
    for command in slurmctld slurmd sbatch munged; do
        command -v "$command" >/dev/null || die "$command is not installed: apt-get install $PACKAGES"
    done
    [ "$(id -u)" = 0 ] || die "needs root: slurmd starts the jobs' processes for other users"
    if up; then
        count="$(sinfo --noheader --Node | wc -l)"
        [ -z "$1" ] || [ "$count" -eq "$1" ] || die "already running with $count node(s), not $1: stop it first"
        status
        return
    fi
    [ ! -e "$CONF" ] || ours || die "$CONF is there already: this machine belongs to a cluster"
    end_daemons # a start that did not come through, or daemons without a controller
    rm -rf "$STATE" # jobs of a cluster that died are lost: what they were is in their logs
    mkdir -p "$STATE/state" "$(dirname "$CONF")"
    write_conf "${1:-1}"
    hosts_add "${1:-1}"
    ln -sfn "$STATE/slurm.conf" "$CONF"
    start_munge
    # in a session of their own and without our files: the caller's pipe can close, a signal to it does not reach them
    setsid slurmctld -f "$STATE/slurm.conf" </dev/null >>"$STATE/start.log" 2>&1
    for name in $(nodes "${1:-1}"); do
        mkdir -p "$STATE/spool.$name"
        setsid slurmd -f "$STATE/slurm.conf" -N "$name" </dev/null >>"$STATE/start.log" 2>&1
    done
    poll 60 up || die "the nodes did not register; see $STATE/start.log, slurmctld.log and slurmd.*.log there"
    status
}

stop() {
    if ! ours; then
        echo "dev cluster: not running"
        return
    fi
    if timeout 10 scontrol ping 2>/dev/null | grep -q 'is UP'; then
        # a job that ignores SIGTERM would have us wait for 30 s; scancel knows no shorter way (KILL is TERM first)
        sed -i 's/^KillWait=.*/KillWait=1/' "$STATE/slurm.conf"
        scontrol reconfigure
        squeue --noheader --format=%A | sort -u | xargs -r scancel --quiet || true
        poll 20 no_jobs || echo "dev cluster: jobs did not end: $(squeue --noheader --format=%A | tr '\n' ' ')" >&2
    fi
    end_daemons
    end /run/munge/slt-dev-cluster.pid munged
    rm -f "$CONF"
    rm -rf "$STATE"
    hosts_remove
    echo "dev cluster: stopped"
}

status() {
    if ! up; then
        echo "dev cluster: not running"
        return 1
    fi
    echo "dev cluster: up, $(sinfo --noheader --Node | wc -l) node(s), $(squeue --noheader --array | wc -l) job(s)," \
        "partition gpu, $(scontrol show config | sed -n 's/^SLURM_VERSION *= */SLURM /p'), logs in $STATE"
}

NODES=""
ACTION="${1:-}"
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
    case "$1" in
        --nodes) NODES="${2:-}" && shift ;;
        --nodes=*) NODES="${1#*=}" ;;
        *) die "unknown option $1; see dev_cluster.sh --help" ;;
    esac
    [[ "$NODES" =~ ^[1-9]$ ]] || die "--nodes takes a number from 1 to 9, not '$NODES'"
    shift
done
case "$ACTION" in
    start) start "$NODES" ;;
    stop) stop ;;
    status) status ;;
    -h | --help) usage ;;
    *) usage >&2 && exit 2 ;;
esac
