# Envoy's preStop hook, with the seconds that requests in progress have. The image has bash, but no curl.
admin() {
  exec 3<> /dev/tcp/127.0.0.1/9901
  printf '%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' "$1" "$2" >&3
  cat <&3
  exec 3>&-
}

# It asks clients to leave, more and more of them within ten seconds (--drain-time-s), and goes on serving those that come.
admin POST '/drain_listeners?graceful&skip_exit'
sleep 12
for ((second = 12; second < $1; second++)); do
  active=0
  while IFS=': ' read -r _ count; do
    active=$((active + count))
  done < <(admin GET '/stats?filter=^http[.](http|grpc)[.]downstream_rq_active$' | tr -d '\r' | grep '^http[.]')
  if ((active == 0)); then
    exit 0
  fi
  sleep 1
done
