# Runs in the machine of contrib/vm/run, as root, in busybox's shell: what limits do to a tenant under load, and what keeps it apart.
. /checks.sh
tenants=/etc/sq-agent/tenants.toml
export SQ_AGENT_TENANTS=$tenants HOME=/var/lib/sq
mkdir -p /etc/sq-agent /var/lib/sq
chown sq:sq /var/lib/sq
chmod 700 /var/lib/sq
cat >$tenants <<'T'
[agent]
state_dir = "/var/lib/sq"
disk_reserve = "none"
[sq]
binary = "/usr/bin/sq"
[proxy]
listen = ["127.0.0.1:8443"]
[tiers.free]
memory_max = "20M"
cpu_quota  = "10%"
rate       = "1000/s"
burst      = 1000
# Emulation is 20 to 40 times slower than a CPU: 10 % of it would measure patience, not memory. bob keeps the 10 %.
[[tenants]]
id        = "ada@example.com"
cpu_quota = "100%"
body_max  = "64M"
[[tenants]]
id = "bob@example.com"
[[tenants]]
id         = "greedy@example.com"
body_max   = "64M"
# The guard would not let it come to that.
durability = "off"
[alerts.exec]
program = "/tmp/hook"
T
# Each alert in a line.
cat >/tmp/hook <<'T'
#!/bin/sh
echo "$SQ_AGENT_ALERT_NEWS $SQ_AGENT_ALERT_KIND $SQ_AGENT_ALERT_SEVERITY $SQ_AGENT_ALERT_TENANT" >>/tmp/alerts
T
chmod 755 /tmp/hook
: >/tmp/alerts
chown sq:sq /tmp/alerts

# A cgroup that is the agent's, as Delegate=yes makes one.
base=/sys/fs/cgroup/sq-agent
mkdir $base
chown sq:sq $base $base/cgroup.procs $base/cgroup.subtree_control $base/cgroup.threads
sh -c "echo 0 >$base/cgroup.procs; exec /usr/bin/setpriv --reuid=900 --regid=900 --clear-groups sq-agent run --quiet" >/tmp/agent.log 2>&1 &
agent=$!
finish() {
  if [ $failed != 0 ]; then
    echo '# the last of the log:'
    tail -30 /tmp/agent.log | sed 's/^/  | /'
  fi
  kill -TERM $agent 2>/dev/null
  wait $agent
  is 'the agent ends in good order' 0 $?
  is 'nothing of it is left' '' "$(pidof sq)"
  done_checking
}

state() { sq-agent status --json | jq -r ".tenants[] | select(.id == \"$1@example.com\") | .$2"; }
# Not `status`'s exit code: it is not 0 either where a host permits less than all isolation.
all_ready() { [ "$(sq-agent status --json | jq '[.tenants[] | select(.state == "ready")] | length')" = 3 ]; }
eventually 60 all_ready
succeeds 'three tenants are ready' all_ready
[ $failed = 0 ] || { finish; exit 1; }

echo '# what this host permits'
sq-agent doctor 2>&1 | sed 's/^/  | /'

echo '# the limits, as the kernel has them'
place() { echo $base/tenants*/tenant-$1@example.com; }
seen() { cat "$(place "$1")/$2" 2>&1; }
is 'each tenant has a cgroup' 3 "$(ls -d $base/tenants*/tenant-* 2>/dev/null | wc -l)"
is 'ada lives in hers' "$(state ada pid)" "$(seen ada cgroup.procs)"
is 'memory.max is 20 MiB' 20971520 "$(seen ada memory.max)"
within 'memory.high is 90 % of it, less at most a page and a rounding' 18866176 18874368 "$(seen ada memory.high)"
[ ! -e "$(place ada)/memory.swap.max" ] || is 'memory.swap.max is nothing' 0 "$(seen ada memory.swap.max)"
is 'cpu.max is 10 %' '10000 100000' "$(seen bob cpu.max)"
within 'pids.max is a number' 16 2000 "$(seen ada pids.max)"
is 'memory.oom.group is on' 1 "$(seen ada memory.oom.group)"

echo '# load: 50 at once, 1 MB each, on one tenant under 20 MB'
url=https://127.0.0.1:8443
ca=/var/lib/sq/tls/cert.pem
head -c 750000 /dev/urandom | base64 | tr -d '\n' | head -c 1000000 >/tmp/megabyte
head -c 16000000 /dev/zero | tr '\0' x >/tmp/sixteen
for who in ada bob greedy; do sq-agent token --sub $who@example.com >/tmp/$who; done
# as WHO PATH [CURL OPTIONS]: prints the status
as() {
  who=$1 path=$2
  shift 2
  curl --silent --cacert $ca --header "Authorization: Bearer $(cat /tmp/$who)" --max-time 120 --output /tmp/body --write-out '%{http_code}' "$@" "$url$path"
}
# many LINE...: 50 requests at once, each with these lines of curl's configuration; prints how many answers of each status.
many() {
  for _ in $(seq 50); do
    printf '%s\n' "$@" 'silent' 'http1.1' 'max-time = 120' "cacert = \"$ca\"" "header = \"Authorization: Bearer $(cat /tmp/ada)\"" \
      'output = "/dev/null"' 'write-out = "%{http_code} %{time_total}\n"' 'next'
  done | sed '$d' >/tmp/requests
  curl --parallel --parallel-immediate --parallel-max 50 --config /tmp/requests >/tmp/answers 2>/dev/null
  cut -d' ' -f1 /tmp/answers | sort | uniq -c | awk '{ printf "%s%s x %s", sep, $2, $1; sep = ", " }'
}
events() { seen ada memory.events | grep -E '^(high|max|oom_kill) ' | tr '\n' ' '; }
slowest() { cut -d' ' -f2 /tmp/answers | sort -n | tail -1; }
page='p=diary&c=1.1.1/1.1.1/1.1.1'
before=$(state ada pid)
is '50 updates of 1 MB' '200 x 50' "$(many "url = \"$url/api/v2/update?$page\"" 'data-binary = "@/tmp/megabyte"')"
echo "# slowest: $(slowest) s; memory.peak $(seen ada memory.peak), $(events)"
is '50 selects of 1 MB' '200 x 50' "$(many "url = \"$url/api/v2/select?$page\"")"
echo "# slowest: $(slowest) s; memory.peak $(seen ada memory.peak), $(events)"
is 'what was written last is read' "200 $(md5sum </tmp/megabyte)" "$(as ada "/api/v2/select?$page") $(md5sum </tmp/body)"
is 'it is the same sq' "$before" "$(state ada pid)"
is 'nothing was killed' 'oom_kill 0' "$(seen ada memory.events | grep '^oom_kill ')"
for _ in 1 2 3; do as bob "/api/v2/update?$page" --data-binary @/tmp/megabyte >/dev/null; done
within 'bob was held to his share of CPU (periods throttled)' 1 1000000000 "$(seen bob cpu.stat | sed -n 's/^nr_throttled //p')"

echo '# too much: 16 MB at once cost sq 48 MB and more'
is 'the guard refuses what would kill her sq' 413 "$(as ada "/api/v2/update?$page" --data-binary @/tmp/sixteen)"
before=$(state greedy pid) other=$(state bob pid)
status=$(as greedy "/api/v2/update?$page" --data-binary @/tmp/sixteen)
echo "# the upload was answered with $status"
told() { sq-agent status | grep greedy | grep -q 'killed for memory'; }
eventually 20 told
succeeds 'status says: killed for memory' told
sq-agent status | grep greedy | sed 's/^/  | /'
eventually 30 all_ready
within 'it has been started anew' 1 4194304 "$([ "$(state greedy pid)" = "$before" ] || state greedy pid)"
is 'and answers' 200 "$(as greedy "/api/v2/update?$page" --data-binary small)"
is 'another tenant never noticed' "$other 200" "$(state bob pid) $(as bob "/api/v2/update?$page" --data-binary hello)"

echo '# alerts'
alerted() { grep -q "^$1" /tmp/alerts; }
eventually 20 alerted 'raised oom_kill warning greedy@example.com'
succeeds 'the kill was told' alerted 'raised oom_kill warning greedy@example.com'
total=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
# taken: what is not available, per mille of all.
taken() { awk -v total="$total" '/^MemAvailable:/ { printf "%d", (total - $2) * 1000 / total }' /proc/meminfo; }
mkdir -p /tmp/eaten
mount -t tmpfs -o size=100% eaten /tmp/eaten
pieces=0
# eat PERMILLE: takes the memory of the machine up to there, 16 MiB at a time.
eat() {
  while [ "$(taken)" -lt "$1" ] && [ $pieces -lt 400 ]; do
    pieces=$((pieces + 1))
    head -c 16777216 /dev/zero >/tmp/eaten/$pieces
  done
  echo "# $(taken) per mille of the memory are taken"
}
for level in '810 warning' '910 critical'; do
  eat "${level% *}"
  began=$(date +%s)
  eventually 15 alerted "raised host_memory ${level#* }"
  within "${level#* }: told within 10 s of being taken" 0 10 "$(if alerted "raised host_memory ${level#* }"; then echo $(($(date +%s) - began)); fi)"
done
umount /tmp/eaten
eventually 15 alerted 'resolved host_memory'
succeeds 'and that it is free again' alerted 'resolved host_memory'
sed 's/^/  | /' /tmp/alerts

echo '# apart'
port=$(state ada port)
# 7 is curl's word for a refused connection.
is 'no other user reaches her sq by its port' 7 "$(/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups curl --silent --max-time 5 http://127.0.0.1:$port/ >/dev/null; echo $?)"
is 'nor does root, outside its network' 7 "$(curl --silent --max-time 5 http://127.0.0.1:$port/ >/dev/null; echo $?)"
succeeds 'no other user reads her data' sh -c '! /usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups ls /var/lib/sq/users'
if [ -e /programs ]; then
  echo '# the tests of isolation and cgroups'
  while read -r name program; do
    mkdir -p /tmp/tests
    chown sq:sq /tmp/tests
    succeeds "$name, as root" env TMPDIR=/tmp/tests "$program"
    succeeds "$name, as a user in a cgroup of its own" sh -c "mkdir -p $base.$name && chown sq:sq $base.$name $base.$name/cgroup.procs $base.$name/cgroup.subtree_control && echo 0 >$base.$name/cgroup.procs && exec /usr/bin/setpriv --reuid=900 --regid=900 --clear-groups env TMPDIR=/tmp/tests $program"
  done </programs
fi
finish
