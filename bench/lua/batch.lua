-- Batches of OPS additions that go through COUNTERS counters in a fixed scattered order: OPS COUNTERS PREFIX.
-- Ten bodies in turn, made on first use.
local BODIES, STRIDE = 10, 7919
local ops, count, prefix, formatted, turn = 0, 0, "", {}, 0

function init(args)
  ops, count, prefix = tonumber(args[1]), tonumber(args[2]), args[3]
  wrk.headers["Content-Type"] = "application/json"
end

local function body(n)
  local items = {}
  for i = 1, ops do
    local counter = ((n * ops + i) * STRIDE) % count
    items[i] = string.format('{"id":"%s%06d","amount":1}', prefix, counter)
  end
  return '{"ops":[' .. table.concat(items, ",") .. "]}"
end

function request()
  turn = (turn + 1) % BODIES
  local text = formatted[turn]
  if not text then
    text = wrk.format("POST", "/v1/batch", nil, body(turn))
    formatted[turn] = text
  end
  return text
end
