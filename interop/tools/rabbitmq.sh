#!/usr/bin/env bash
# RabbitMQ as Debian packages it, on loopback: node N of a cluster, with STOMP.
#   rabbitmq.sh start DIR BASEPORT N              AMQP on BASEPORT, STOMP on the next one; prints the pid once STOMP answers
#   rabbitmq.sh cluster DIR1 DIR2 DIR3            joins 2 and 3 to 1
#   rabbitmq.sh quorum DIR VHOST                  a virtual host in which every queue is a quorum queue
#   rabbitmq.sh ctl DIR ARGUMENTS...              rabbitmqctl of that node
#   rabbitmq.sh stop PID [KILL]
# Nodes find each other through an epmd of their own on EPMD_PORT (4469), which the first one starts: rabbitmq.sh epmd-stop.
set -eu
export ERL_EPMD_PORT=${EPMD_PORT:-4469} ERL_EPMD_ADDRESS=127.0.0.1
bin=$(dirname "$(dpkg -L rabbitmq-server | grep 'rabbitmq/bin/rabbitmqctl$\|rabbitmq_server.*/sbin/rabbitmqctl$' | head -1)")

stop_pid() { # PID SIGNAL: waits until it is gone
    kill -"$2" "$1" 2>/dev/null || return 0
    for _ in $(seq 300); do
        # A zombie that nobody collects counts as gone, unless threads of it (l) are still ending.
        case "$(ps -o stat= -p "$1" 2>/dev/null)" in Z*l*) ;; Z* | '') return 0 ;; esac
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

node() { # DIR: everything of that node lies in its directory
    dir=$(mkdir -p "$1" && cd "$1" && pwd)
    mkdir -p "$dir/home" "$dir/mnesia" "$dir/log"
    export HOME=$dir/home RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir/log RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf
    export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins RABBITMQ_PID_FILE=$dir/pid RABBITMQ_CONF_ENV_FILE=$dir/none
    export RABBITMQ_ADVANCED_CONFIG_FILE=$dir/none.config
    RABBITMQ_NODENAME=$(cat "$dir/nodename")
    export RABBITMQ_NODENAME
    if [ ! -s "$HOME/.erlang.cookie" ]; then
        echo kahawaibenchcookie >"$HOME/.erlang.cookie"
        chmod 400 "$HOME/.erlang.cookie"
    fi
}

start() { # DIR BASEPORT N
    local port=$2
    mkdir -p "$1"
    echo "bench$3@localhost" >"$1/nodename"
    node "$1"
    export RABBITMQ_NODE_PORT=$port RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_DIST_PORT=$((port + 2))
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
    cat >"$dir/rabbitmq.conf" <<X
stomp.listeners.tcp.1 = 127.0.0.1:$((port + 1))
log.file.level = warning
vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 1GB
cluster_partition_handling = ignore
loopback_users.guest = true
X
    echo '[rabbitmq_stomp].' >"$dir/enabled_plugins"
    cd "$dir"
    setsid nohup "$bin/rabbitmq-server" >"$dir/out.log" 2>&1 </dev/null &
    for _ in $(seq 600); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null; then
            cat "$dir/pid"
            return
        fi
        sleep 0.2
    done
    tail -20 "$dir/out.log" >&2
    exit 1
}

join() { # DIR, to the first node
    node "$1"
    for step in stop_app reset "join_cluster bench1@localhost" start_app; do
        # shellcheck disable=SC2086
        "$bin/rabbitmqctl" -q $step >&2
    done
}

case "${1:-}" in
start) start "$2" "$3" "$4" ;;
cluster) (join "$3") && (join "$4") ;;
quorum)
    node "$2"
    "$bin/rabbitmqctl" -q add_vhost "$3" --default-queue-type quorum
    "$bin/rabbitmqctl" -q set_permissions -p "$3" guest '.*' '.*' '.*'
    ;;
ctl) node "$2"; shift 2; "$bin/rabbitmqctl" -q "$@" ;;
stop) stop_pid "$2" "${3:-TERM}" ;;
epmd-stop) epmd -port "$ERL_EPMD_PORT" -kill >/dev/null ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
