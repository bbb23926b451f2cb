-- Appended to every script: one line that the runner reads.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "\nquipu-bench requests=%d duration_us=%d status=%d connect=%d read=%d write=%d timeout=%d mean_us=%d p50_us=%d p99_us=%d\n",
    summary.requests, summary.duration, errors.status, errors.connect, errors.read, errors.write, errors.timeout,
    latency.mean, latency:percentile(50), latency:percentile(99)))
end
