# Runs in the machine of contrib/vm/run, as root, in busybox's shell, until its power ends: power.sh BOOT DURABILITY
boot=$1 durability=$2
mkdir -p /var/lib/sq /etc/sq-agent
mount -t ext4 /dev/vda /var/lib/sq || exit 3
export SQ_AGENT_TENANTS=/etc/sq-agent/tenants.toml HOME=/var/lib/sq
cat >$SQ_AGENT_TENANTS <<T
[agent]
state_dir  = "/var/lib/sq"
durability = "$durability"
disk_reserve = "none"
[sq]
binary = "/usr/bin/sq"
[proxy]
listen = ["127.0.0.1:8443"]
[tiers.free]
rate = "none"
T
for n in 00 01 02 03; do printf '[[tenants]]\nid = "user%s@example.com"\ntier = "free"\n' $n >>$SQ_AGENT_TENANTS; done
# Bytes as they are.
stty -F /dev/ttyS1 raw -echo 2>/dev/null
sq-agent run --quiet >/tmp/agent.log 2>&1 &
if ! POWER_STATE=/var/lib/sq POWER_PORT=8443 POWER_BOOT=$boot POWER_TOLD=/told POWER_DIARY=/dev/ttyS1 \
  torture --ignored --nocapture --exact power::what_was_told_before_the_power_ended_is_there; then
  tail -40 /tmp/agent.log
  exit 1
fi
