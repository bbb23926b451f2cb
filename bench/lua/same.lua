-- The same request again and again, formatted once: METHOD [BODY].
function init(args)
  wrk.method = args[1]
  if args[2] then
    wrk.headers["Content-Type"] = "application/json"
    wrk.body = args[2]
  end
end
