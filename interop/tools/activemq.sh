#!/usr/bin/env bash
# ActiveMQ Classic as Debian packages it, on loopback with KahaDB, every send synced to disk.
#   activemq.sh start DIR BASEPORT   OpenWire on BASEPORT, STOMP on the next one; prints the pid once STOMP answers
#   activemq.sh stop PID [KILL]
# Environment: AMQ_SYNC=always|periodic|never  AMQ_XMX=2g  AMQ_EXTRA_KAHADB='name="value"'
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

start() { # DIR BASEPORT
    local dir port=$2 jar home pid
    dir=$(mkdir -p "$1" && cd "$1" && pwd)
    jar=$(dpkg -L activemq | grep 'share/activemq/bin/activemq.jar$')
    home=$(dirname "$(dirname "$jar")")
    mkdir -p "$dir/conf" "$dir/tmp"
    cat >"$dir/conf/activemq.xml" <<X
<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" brokerName="peer$port" dataDirectory="$dir/data"
      persistent="true" schedulerSupport="false" advisorySupport="true">
    <destinationPolicy><policyMap><policyEntries>
      <policyEntry queue=">" producerFlowControl="true" memoryLimit="64mb"/>
    </policyEntries></policyMap></destinationPolicy>
    <persistenceAdapter>
      <kahaDB directory="$dir/kahadb" journalDiskSyncStrategy="${AMQ_SYNC:-always}" ${AMQ_EXTRA_KAHADB:-}/>
    </persistenceAdapter>
    <systemUsage><systemUsage>
      <memoryUsage><memoryUsage percentOfJvmHeap="70"/></memoryUsage>
      <storeUsage><storeUsage limit="50 gb"/></storeUsage>
      <tempUsage><tempUsage limit="10 gb"/></tempUsage>
    </systemUsage></systemUsage>
    <transportConnectors>
      <transportConnector name="openwire" uri="tcp://127.0.0.1:$port?wireFormat.maxFrameSize=104857600"/>
      <transportConnector name="stomp" uri="stomp://127.0.0.1:$((port + 1))?wireFormat.maxFrameSize=104857600"/>
    </transportConnectors>
  </broker>
</beans>
X
    cat >"$dir/conf/log4j.properties" <<X
log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.FileAppender
log4j.appender.out.file=$dir/activemq.log
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d | %-5p | %m | %c | %t%n
X
    cd "$dir"
    setsid nohup java -Xms64m -Xmx"${AMQ_XMX:-2g}" -Djava.io.tmpdir="$dir/tmp" \
        -Dlog4j.configuration=file:conf/log4j.properties -Djava.awt.headless=true \
        -Dactivemq.home="$home" -Dactivemq.base="$dir" -Dactivemq.conf="$dir/conf" -Dactivemq.data="$dir/data" \
        -Dactivemq.classpath="$dir/conf" -jar "$jar" start xbean:file:conf/activemq.xml \
        >"$dir/out.log" 2>&1 </dev/null &
    pid=$!
    for _ in $(seq 900); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null; then
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
*) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
