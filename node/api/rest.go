package api

import (
	"encoding/json"
	"net/http"

	"github.com/beammesh/beammesh/proto/fault"
)

// WriteJSON answers with v.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone, if it fails
}

// WriteError answers with an error as JSON: {"code", "message", "hint"}.
func WriteError(w http.ResponseWriter, err error) {
	f := fault.From(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(httpStatus(f.Code))
	_ = json.NewEncoder(w).Encode(map[string]string{"code": string(f.Code), "message": f.Message, "hint": f.Hint})
}

func httpStatus(c fault.Code) int {
	switch c {
	case fault.Invalid, fault.Unsupported, fault.PythonMismatch:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Unauthorized, fault.Expired:
		return http.StatusUnauthorized
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.Conflict:
		return http.StatusConflict
	case fault.TooLarge:
		return http.StatusRequestEntityTooLarge
	case fault.NoCapacity, fault.DiskFull:
		return http.StatusTooManyRequests
	case fault.Timeout, fault.JobTimeout:
		return http.StatusGatewayTimeout
	case fault.Unreachable:
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}
