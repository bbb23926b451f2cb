-- One addition per request, to a counter drawn evenly from COUNTERS ones: COUNTERS PREFIX.
-- Requests are formatted on first use and kept, so that their making costs the same whichever server answers.
local count, prefix, formatted = 0, "", {}
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("seed", threads)
end

function init(args)
  count, prefix = tonumber(args[1]), args[2]
  math.randomseed(seed)
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local n = math.random(0, count - 1)
  local text = formatted[n]
  if not text then
    text = wrk.format("POST", string.format("/v1/counters/%s%06d/add", prefix, n), nil, '{"amount":1}')
    formatted[n] = text
  end
  return text
end
