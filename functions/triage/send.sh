# send.sh DELIVERY BODY: sends a signed ticket, as a ticket system would.
signature=$(printf %s "$2" | openssl dgst -sha256 -hmac ticket-secret -r | cut -d' ' -f1)
curl -sS -i http://127.0.0.1:8080/triage/tickets -d "$2" \
    -H "X-Hub-Signature-256: sha256=$signature" -H "X-GitHub-Delivery: $1"
echo
