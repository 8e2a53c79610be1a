-- One connection that writes: arguments are a file with the Authorization value, and the length of the body.
local authorization
local body

function init(args)
   authorization = io.open(args[1]):read("l")
   body = string.rep("x", tonumber(args[2]))
end

function request()
   return wrk.format("POST", nil, { Authorization = authorization }, body)
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      'FIGURES {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
