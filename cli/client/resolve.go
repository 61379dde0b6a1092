package client

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// The ports of a node when nothing else is said.
const (
	DefaultPort    = 1993 // gRPC and Connect
	DefaultAPIPort = 1994 // REST and HTTP
)

// Source is where settings come from; all fields may be empty.
type Source struct {
	// From flags. Context wins over the environment because it was typed.
	Context, Host, Port, Token string
	Getenv                     func(string) string
	// ConfigPath is the INI file; "" = none.
	ConfigPath string
}

// Settings is how to reach a node.
type Settings struct {
	Host    string
	Port    int
	APIHost string
	APIPort int
	Token   string
	// Origin says where the address came from, for error messages.
	Origin string
}

// Address is host:port of the node's gRPC and Connect API.
func (s Settings) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// TLS follows the stock clients' rule: an address that ends in 443 speaks TLS.
// Not on loopback, where nodes speak plaintext on whatever port they were given.
func (s Settings) TLS() bool {
	local := s.Host == "localhost" || s.Host == "::1" || strings.HasPrefix(s.Host, "127.")
	return !local && strings.HasSuffix(strconv.Itoa(s.Port), "443")
}

// URL is the base of all routes.
func (s Settings) URL() string {
	if s.TLS() {
		return "https://" + s.Address()
	}
	return "http://" + s.Address()
}

// Env gives the variables by which the Python SDK and stock clients find the
// same node.
func (s Settings) Env() []string {
	return []string{
		"GATEWAY_HOST=" + s.Host,
		"GATEWAY_PORT=" + strconv.Itoa(s.Port),
		"API_HOST=" + s.APIHost,
		"API_PORT=" + strconv.Itoa(s.APIPort),
		"BEAM_TOKEN=" + s.Token,
	}
}

// Resolve decides how to reach a node. Each value is taken from the first
// place that has it: flags, a context named by a flag, the environment, the
// context (BEAM_CONTEXT, else "default"), the local node's defaults. The Python
// SDK decides the same way.
func Resolve(src Source) (Settings, error) {
	getenv := src.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	var named, def Context
	if src.ConfigPath != "" {
		cfg, err := LoadConfig(src.ConfigPath)
		if err != nil {
			return Settings{}, err
		}
		asked := src.Context
		if asked == "" {
			asked = getenv("BEAM_CONTEXT")
		}
		var ok bool
		if def, ok = cfg.Context(cmp.Or(asked, DefaultContext)); !ok && asked != "" {
			return Settings{}, fault.New(fault.NotFound, fmt.Sprintf("no context %q in %s", asked, src.ConfigPath),
				"`beam config list` shows what there is")
		}
		if src.Context != "" {
			named, def = def, Context{}
		}
	}
	type value struct{ text, origin string }
	first := func(vs ...value) value {
		for _, v := range vs {
			if v.text != "" {
				return v
			}
		}
		return value{}
	}
	port := func(c Context) string {
		if c.Port == 0 {
			return ""
		}
		return strconv.Itoa(c.Port)
	}
	host := first(value{src.Host, "--gateway-host"}, value{named.Host, "context " + src.Context},
		value{getenv("GATEWAY_HOST"), "GATEWAY_HOST"}, value{def.Host, src.ConfigPath}, value{"127.0.0.1", "default"})
	portText := first(value{src.Port, "--gateway-port"}, value{port(named), "context " + src.Context},
		value{getenv("GATEWAY_PORT"), "GATEWAY_PORT"}, value{port(def), src.ConfigPath}, value{strconv.Itoa(DefaultPort), "default"})
	apiPortText := first(value{getenv("API_PORT"), "API_PORT"}, value{strconv.Itoa(DefaultAPIPort), "default"})

	s := Settings{
		Host:    host.text,
		APIHost: first(value{getenv("API_HOST"), ""}, value{host.text, ""}).text,
		Token:   first(value{src.Token, ""}, value{named.Token, ""}, value{getenv("BEAM_TOKEN"), ""}, value{def.Token, ""}).text,
		Origin:  host.origin,
	}
	var err error
	if s.Port, err = parsePort(portText.text); err != nil {
		return Settings{}, fault.New(fault.Invalid, fmt.Sprintf("%s: %v", portText.origin, err), "")
	}
	if s.APIPort, err = parsePort(apiPortText.text); err != nil {
		return Settings{}, fault.New(fault.Invalid, fmt.Sprintf("%s: %v", apiPortText.origin, err), "")
	}
	return s, nil
}

func parsePort(text string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is no port (1-65535)", text)
	}
	return n, nil
}
