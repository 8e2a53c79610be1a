# The two programs that limits and systemd put into the machine. Sourced, never run.

agent='' sq=''

# programs: builds what was not given, and gives all its name: $agent, $sq, in the directory $named.
programs() {
  cd "$here/../.."
  if [ -z "$agent" ]; then
    cargo build --locked --release
    agent=$PWD/target/release/sq-agent
  fi
  if [ -z "$sq" ]; then
    sq=$PWD/target/vm-tools/bin/sq
    [ -x "$sq" ] || cargo install sq --version 0.6.0 --locked --quiet --root target/vm-tools
  fi
  [ -x "$agent" ] || { echo "no program $agent" >&2; exit 2; }
  [ -x "$sq" ] || { echo "no program $sq" >&2; exit 2; }
  # Whatever they are called outside.
  named=$(mktemp -d)
  cp "$agent" "$named/sq-agent"
  cp "$sq" "$named/sq"
  agent=$named/sq-agent sq=$named/sq
}
