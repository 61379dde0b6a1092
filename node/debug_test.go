package node

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/fault"
)

func TestProfilesNeedAnAdminToken(t *testing.T) {
	h := debugHandler(auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) {
		switch bearer {
		case "admin":
			return auth.Identity{Scopes: []token.Scope{token.Admin}}, nil
		case "user":
			return auth.Identity{Scopes: []token.Scope{token.Invoke}}, nil
		}
		return auth.Identity{}, fault.New(fault.Unauthorized, "no token was given", "")
	}))
	for bearer, want := range map[string]int{"": http.StatusUnauthorized, "user": http.StatusForbidden, "admin": http.StatusOK} {
		r := httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil)
		if bearer != "" {
			r.Header.Set("Authorization", "Bearer "+bearer)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("token %q: status %d, want %d", bearer, w.Code, want)
		}
	}
}
