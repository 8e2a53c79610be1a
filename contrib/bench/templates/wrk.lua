-- Requests with one token after another, and the figures as one line of JSON.
-- Arguments: a file with one complete value of Authorization a line; the length of the body to post, where that is wanted.

local requests = {}
local turn = 0

function init(arguments)
    local body = arguments[2] and string.rep("x", tonumber(arguments[2]))
    for value in io.lines(arguments[1]) do
        requests[#requests + 1] = wrk.format(body and "POST" or "GET", nil, { Authorization = value }, body)
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'FIGURES {"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
