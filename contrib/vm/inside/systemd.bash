# Runs in the machine of contrib/vm/run-systemd, as root, once a boot: the package, the unit, kills, upgrades, reboots.
#
#   systemd.bash BOOT TENANTS
source /checks.sh
boot=$1 wanted=$2
unit=sq-agent.service
cgroup=/sys/fs/cgroup/system.slice/$unit
tenants=/etc/sq-agent/tenants.toml
page='p=diary&c=1.1.1/1.1.1/1.1.1'
first=t1@example.com

property() { systemctl show --value --property "$1" $unit; }
main() { property MainPID; }
proxy() { status | jq .proxy.pid; }
status() { sq-agent status --json; }
ready() { status | jq '[.tenants[] | select(.state == "ready")] | length'; }
all_ready() { [ "$(ready)" = "$wanted" ]; }
pids() { status | jq -c '[.tenants[].pid]'; }
# as PATH [CURL OPTIONS]: prints the answer, or its status if that is not 200.
as() {
  local path=$1
  shift
  curl --silent --cacert /var/lib/sq/tls/cert.pem --header "Authorization: Bearer $(cat /var/tmp/token)" --max-time 30 \
    --write-out '%{stderr}%{http_code}' "$@" "https://127.0.0.1$path" 2>/tmp/code
  [ "$(tail -c 3 /tmp/code)" = 200 ] || echo " ($(tail -c 3 /tmp/code))"
}
read_back() { as "/api/v2/select?$page"; }
write() { as "/api/v2/update?$page" --data-binary "$1" >/dev/null; }
show_log() {
  journalctl --quiet --no-pager --output=short-monotonic --boot --unit $unit | tail -25 | sed 's/^/  | /'
  systemctl status --no-pager --lines=0 $unit | tail -n +3 | head -15 | sed 's/^/  | /'
}
finish() {
  [ $failed = 0 ] || show_log
  done_checking
  exit
}

# Requests, one after another, in the background until it is told to stop; then how many failed.
start_requests() {
  rm -f /tmp/stop /tmp/asked
  (while [ ! -e /tmp/stop ]; do
    curl --silent --cacert /var/lib/sq/tls/cert.pem --header "Authorization: Bearer $(cat /var/tmp/token)" --max-time 30 --output /dev/null \
      --write-out '%{http_code}\n' "https://127.0.0.1/api/v2/select?$page" >>/tmp/asked
  done) &
}
end_requests() {
  touch /tmp/stop
  wait
  within "requests meanwhile: answered" 1 1000000 "$(grep -c '^200$' /tmp/asked)"
  is "requests meanwhile: failed" 0 "$(grep -vc '^200$' /tmp/asked)"
}

# same_after WHAT: tenants, their data and limits are as they were, and the host is served by a main process that answers.
same_after() {
  eventually 60 all_ready
  is "$1: all tenants are ready" "$wanted" "$(ready)"
  is "$1: each is the same process" "$before" "$(pids)"
  is "$1: what was written is read" "$text" "$(read_back)"
  is "$1: the limit is in force" 20971520 "$(cat $cgroup/tenants*/tenant-$first/memory.max 2>&1)"
  is "$1: the unit" active "$(property ActiveState)"
}
remember() { before=$(pids) main_before=$(main) proxy_before=$(proxy) began=$(date +%s); }
# The main process answers, and has done so for no longer than since `remember`. (An upgrade keeps its pid, a restart does not.)
taken_over() {
  local pid uptime
  read -r pid uptime < <(status | jq -r '.agent | "\(.pid) \(.uptime_seconds)"')
  [ "${pid:-none}" = "$(main)" ] && [ "$uptime" -le $(($(date +%s) - began)) ]
}

# The main process executes the program of the package.
runs_installed() { [ "$(readlink "/proc/$(main)/exe")" = /usr/bin/sq-agent ]; }

nothing_left() {
  is "$1: no process is left" '' "$(pgrep -u sq-agent -a | cut -c1-80 | head -3)"
}

write_tenants() {
  cat >$tenants <<T
[agent]
state_dir = "/var/lib/sq"
[sq]
binary = "/usr/local/bin/sq"
[proxy]
listen = ["127.0.0.1:443"]
[tiers.free]
memory_max = "20M"
cpu_quota  = "50%"
T
  for n in $(seq "$wanted"); do printf '[[tenants]]\nid = "t%s@example.com"\n' "$n"; done >>$tenants
}

# Since the start of the unit until all were ready, as far as a look every 0.2 s can tell.
time_to_ready() {
  eventually 400 all_ready
  local now started
  now=$(awk '{ printf "%d", $1 * 1000 }' /proc/uptime)
  started=$(($(property ExecMainStartTimestampMonotonic) / 1000))
  is "$1: all tenants are ready" "$wanted" "$(ready)"
  echo "# $1: $wanted tenants ready $((now - started)) ms after the agent's start, in emulation (machine up since $now ms)"
}

first_boot() {
  echo '# install'
  succeeds 'the package installs' dpkg -i /debs/first.deb
  [ $failed = 0 ] || finish
  is 'it makes a user' sq-agent "$(getent passwd sq-agent | cut -d: -f1)"
  is 'it starts nothing yet' inactive "$(property ActiveState)"
  succeeds 'its example of tenants.toml is good' sq-agent --tenants $tenants check
  within 'systemd-analyze security, times ten' 0 30 "$(systemd-analyze security --no-pager $unit | sed -n 's/.*Overall exposure level.*: \([0-9]*\)\.\([0-9]*\).*/\1\2/p')"
  write_tenants
  succeeds 'the unit starts' systemctl enable --now --quiet $unit
  [ $failed = 0 ] || finish
  time_to_ready 'first start'
  sq-agent token --ttl 7d --sub $first >/var/tmp/token
  text='written before all of it'
  write "$text"
  is 'a tenant is served on port 443' "$text" "$(read_back)"
  is 'the agent is not root' sq-agent "$(ps -o user= -p "$(main)")"
  echo '# what this host permits'
  sq-agent doctor 2>&1 | sed 's/^/  | /'

  echo '# kill -9 of the agent'
  start_requests
  remember
  kill -9 "$main_before"
  succeeds 'kill -9: another agent takes over' eventually 60 taken_over
  same_after 'kill -9'
  is 'kill -9: the proxy went on' "$proxy_before" "$(proxy)"
  end_requests

  echo '# systemctl restart'
  start_requests
  remember
  succeeds 'restart' systemctl restart $unit
  succeeds 'restart: another agent takes over' eventually 60 taken_over
  same_after 'restart'
  end_requests

  echo '# systemctl reload'
  start_requests
  remember
  succeeds 'reload' systemctl reload $unit
  succeeds 'reload: another agent has taken over' eventually 20 taken_over
  same_after 'reload'
  is 'reload: the main process is the same' "$main_before" "$(main)"
  is 'reload: the proxy is another' no "$([ "$(proxy)" = "$proxy_before" ] && echo yes || echo no)"
  end_requests

  echo '# a new version of the package'
  start_requests
  remember
  succeeds 'the new package installs' dpkg -i --force-confold /debs/second.deb
  succeeds 'package upgrade: another agent has taken over' eventually 20 taken_over
  # `taken_over` counts whole seconds, and the reload was a moment ago.
  succeeds 'package upgrade: the program that runs is the one installed' eventually 20 runs_installed
  same_after 'package upgrade'
  is 'package upgrade: tenants.toml is untouched' "$wanted" "$(grep -c '^id = ' $tenants)"
  end_requests

  echo '# systemctl stop and start'
  succeeds 'stop' systemctl stop $unit
  nothing_left 'stop'
  succeeds 'start' systemctl start $unit
  time_to_ready 'start'
  is 'start: what was written is read' "$text" "$(read_back)"
  write 'written before the reboot'
}

case $boot in
  1) first_boot ;;
  2)
    echo '# after a reboot'
    time_to_ready 'reboot'
    is 'reboot: what was written is read' 'written before the reboot' "$(read_back)"
    # What systemd says of it; a proxy that came up too late, in emulation, was another matter.
    is 'reboot: the last stop was in good order' '' "$(journalctl --quiet --no-pager --boot=-1 UNIT=$unit --output=cat | grep -E 'timed out|SIGKILL|Failed with' | head -3)"
    write 'written before the power cut'
    sync
    touch /run/power-cut
    ;;
  3)
    echo '# after a power cut'
    time_to_ready 'power cut'
    is 'power cut: what was written is read' 'written before the power cut' "$(read_back)"
    echo '# removal'
    succeeds 'the package is removed' dpkg --remove sq-agent
    nothing_left 'removal'
    data=/var/lib/sq/users/$first/phext-data
    is 'removal: the data stay' 'written before the power cut' "$(cat "$data"/diary.phext | tr -d '\0')"
    is 'removal: tenants.toml stays' "$wanted" "$(grep -c '^id = ' $tenants)"
    succeeds 'the package is purged' dpkg --purge sq-agent
    is 'purge: the data stay' 'written before the power cut' "$(cat "$data"/diary.phext | tr -d '\0')"
    is 'purge: tenants.toml is gone' no "$([ -e $tenants ] && echo yes || echo no)"
    is 'purge: the data belong to the user still' sq-agent "$(stat -c %U /var/lib/sq)"
    ;;
esac
finish
