package node

import (
	"net/http"
	"net/http/pprof"

	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/fault"
)

// debugHandler serves the profiles of this process below /debug/pprof/, for
// holders of an admin token: a profile names files and functions, and taking
// one costs CPU. Containers never reach it.
func debugHandler(v auth.Verifier) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := v.Identify(r.Context(), auth.Bearer(r.Header))
		if err == nil {
			err = id.Require(token.Admin)
		}
		if err != nil {
			status := http.StatusForbidden
			if fault.CodeOf(err) == fault.Unauthorized {
				status = http.StatusUnauthorized
			}
			http.Error(w, fault.From(err).Error(), status)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
