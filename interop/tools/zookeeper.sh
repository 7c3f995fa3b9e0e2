#!/usr/bin/env bash
# ZooKeeper as Debian packages it, one server on loopback.
#   zookeeper.sh start DIR PORT    prints the pid once it answers
#   zookeeper.sh stop PID [KILL]
#   zookeeper.sh cli PORT COMMAND...    one command of its client, as `delete /path`
# Environment: ZK_TICK_MS=2000 (sessions live 2 to 20 ticks)  ZK_XMX=128m
set -eu

stop_pid() { # PID SIGNAL: waits until it is gone
    kill -"$2" "$1" 2>/dev/null || return 0
    for _ in $(seq 300); do
        # A zombie of another shell's counts as gone.
        case "$(ps -o stat= -p "$1" 2>/dev/null)" in Z* | '') return 0 ;; esac
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

# What its jars need lies in the same folder as everything else that Debian packages.
class_path() {
    echo "$(dpkg -L libzookeeper-java | grep '\.jar$' | tr '\n' ':')/usr/share/java/*"
}

# Whether it serves requests: the port is open some time before that.
answers() { # PORT
    local line=
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf ruok >&3
        read -r -t 2 line <&3 || true
        [ "$line" = imok ]
    ) 2>/dev/null
}

start() { # DIR PORT
    local dir port=$2 pid
    dir=$(mkdir -p "$1" && cd "$1" && pwd)
    cat >"$dir/zoo.cfg" <<X
tickTime=${ZK_TICK_MS:-2000}
maxSessionTimeout=40000
dataDir=$dir/data
clientPort=$port
clientPortAddress=127.0.0.1
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=ruok,dump
X
    setsid nohup java -Xmx"${ZK_XMX:-128m}" -cp "$(class_path)" \
        org.apache.zookeeper.server.quorum.QuorumPeerMain "$dir/zoo.cfg" >"$dir/out.log" 2>&1 </dev/null &
    pid=$!
    for _ in $(seq 600); do
        if answers "$port"; then
            echo "$pid"
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
    tail -20 "$dir/out.log" >&2
    exit 1
}

case "${1:-}" in
start) start "$2" "$3" ;;
stop) stop_pid "$2" "${3:-TERM}" ;;
cli) exec java -Xmx64m -cp "$(class_path)" org.apache.zookeeper.ZooKeeperMain -server "127.0.0.1:$2" "${@:3}" ;;
*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
