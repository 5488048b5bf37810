package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// GatewayPrefix is the beginning of the paths of etcd's JSON gateway (package etcd), whose clients want errors in JSON.
const GatewayPrefix = "/v3/"

// IsGateway reports whether r is for the gateway.
func IsGateway(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, GatewayPrefix) }

// gatewayCodes are gRPC's codes for the statuses of this API; 2, unknown, for others.
var gatewayCodes = map[int]int{
	http.StatusBadRequest: 3, http.StatusRequestEntityTooLarge: 3, http.StatusMethodNotAllowed: 12,
	http.StatusRequestTimeout: 4, http.StatusGatewayTimeout: 4, http.StatusNotFound: 5, http.StatusForbidden: 7,
	http.StatusTooManyRequests: 8, http.StatusInsufficientStorage: 8, http.StatusPreconditionFailed: 9,
	http.StatusConflict: 9, http.StatusNotImplemented: 12, http.StatusInternalServerError: 13,
	http.StatusServiceUnavailable: 14, http.StatusUnauthorized: 16,
}

// WriteGatewayError answers an error as etcd's gateway does. A code of 0 is that of the status.
func WriteGatewayError(w http.ResponseWriter, status, code int, message string) {
	if code == 0 {
		code = 2
		if known, ok := gatewayCodes[status]; ok {
			code = known
		}
	}
	body, _ := json.Marshal(struct { // of strings and numbers: no error
		Error   string `json:"error"`
		Message string `json:"message"`
		Code    int    `json:"code"`
	}{message, message, code})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// ReadBody reads the body of a request to the gateway, up to MaxQuery bytes.
func ReadBody(r *http.Request) ([]byte, error) {
	if err := rejectHeaders(r, "Idempotency-Key", "If-Match", "If-None-Match"); err != nil {
		return nil, err
	}
	return readBody(r, "body", MaxQuery)
}
