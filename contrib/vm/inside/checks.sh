# One line a check: ok or not ok, what was seen and, if that is wrong, what was wanted. Sourced inside the machine, by sh and bash.

checked=0 failed=0

# is WHAT WANTED SEEN
is() {
  checked=$((checked + 1))
  if [ "$2" = "$3" ]; then echo "ok $checked - $1 ($3)"; else
    failed=$((failed + 1))
    echo "not ok $checked - $1: $3, wanted $2"
  fi
}

# within WHAT LOW HIGH SEEN: a whole number between two others.
within() {
  checked=$((checked + 1))
  if [ "${4:--1}" -ge "$2" ] 2>/dev/null && [ "$4" -le "$3" ]; then echo "ok $checked - $1 ($4)"; else
    failed=$((failed + 1))
    echo "not ok $checked - $1: ${4:-nothing}, wanted $2 to $3"
  fi
}

# succeeds WHAT COMMAND...: shows what the command said if it failed.
succeeds() {
  checked=$((checked + 1))
  what=$1
  shift
  if "$@" >/tmp/said 2>&1; then echo "ok $checked - $what"; else
    echo "not ok $checked - $what: exit $?, $*"
    failed=$((failed + 1))
    tail -5 /tmp/said | sed 's/^/  | /'
  fi
}

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
  deadline=$(($(date +%s) + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

# done_checking: the last line, and whether all is well.
done_checking() {
  echo "$((checked - failed)) passed, $failed failed"
  [ "$failed" = 0 ]
}
