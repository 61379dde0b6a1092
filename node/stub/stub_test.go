package stub

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/fault"
)

func good() *gatewaypb.GetOrCreateStubRequest {
	return &gatewaypb.GetOrCreateStubRequest{StubType: "function", Handler: "app:f", ImageId: "img"}
}

func TestValidation(t *testing.T) {
	long := strings.Repeat("x", maxText+1)
	for _, c := range []struct {
		name   string
		change func(*gatewaypb.GetOrCreateStubRequest)
		want   fault.Code
		text   string
	}{
		{"plain", func(*gatewaypb.GetOrCreateStubRequest) {}, "", ""},
		{"deployed function", func(r *gatewaypb.GetOrCreateStubRequest) { r.StubType = "function/deployment" }, "", ""},
		{"endpoint", func(r *gatewaypb.GetOrCreateStubRequest) { r.StubType = "endpoint" }, fault.Unsupported, "endpoint"},
		{"no type", func(r *gatewaypb.GetOrCreateStubRequest) { r.StubType = "" }, fault.Unsupported, ""},
		{"no handler", func(r *gatewaypb.GetOrCreateStubRequest) { r.Handler = "" }, fault.Invalid, "module:function"},
		{"handler without function", func(r *gatewaypb.GetOrCreateStubRequest) { r.Handler = "app:" }, fault.Invalid, "module:function"},
		{"handler without module", func(r *gatewaypb.GetOrCreateStubRequest) { r.Handler = ":f" }, fault.Invalid, "module:function"},
		{"long handler", func(r *gatewaypb.GetOrCreateStubRequest) { r.Handler = "a:" + long }, fault.TooLarge, "handler"},
		{"long app", func(r *gatewaypb.GetOrCreateStubRequest) { r.AppName = long }, fault.TooLarge, "app"},
		{"long extra", func(r *gatewaypb.GetOrCreateStubRequest) { r.Extra = strings.Repeat("x", maxExtra+1) }, fault.TooLarge, "extra"},
		{"negative cpu", func(r *gatewaypb.GetOrCreateStubRequest) { r.Cpu = -1 }, fault.Invalid, "negative"},
		{"negative memory", func(r *gatewaypb.GetOrCreateStubRequest) { r.Memory = -5 }, fault.Invalid, "negative"},
		{"absurd cpu", func(r *gatewaypb.GetOrCreateStubRequest) { r.Cpu = math.MaxInt64 }, fault.Invalid, "resources"},
		{"absurd memory", func(r *gatewaypb.GetOrCreateStubRequest) { r.Memory = math.MaxInt64 }, fault.Invalid, "resources"},
		{"gpu", func(r *gatewaypb.GetOrCreateStubRequest) { r.Gpu, r.GpuCount = "H100,A100-80", 2 }, "", ""},
		{"bad gpu", func(r *gatewaypb.GetOrCreateStubRequest) { r.Gpu = "H100:x" }, fault.Invalid, "gpu"},
		{"too many gpus", func(r *gatewaypb.GetOrCreateStubRequest) { r.Gpu, r.GpuCount = "H100", 1<<31 }, fault.Invalid, "gpu"},
		{"env", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = []string{"A=1", "B="} }, "", ""},
		{"env without =", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = []string{"A"} }, fault.Invalid, "NAME=value"},
		{"env without name", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = []string{"=x"} }, fault.Invalid, "NAME=value"},
		{"env with zero byte", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = []string{"A=\x00"} }, fault.Invalid, "NAME=value"},
		{"too many env", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = make([]string, maxEnv+1) }, fault.TooLarge, "env"},
		{"too large env", func(r *gatewaypb.GetOrCreateStubRequest) { r.Env = []string{"A=" + strings.Repeat("x", maxEnvBytes)} }, fault.TooLarge, "env"},
		{"allow list", func(r *gatewaypb.GetOrCreateStubRequest) { r.AllowList = []string{"10.0.0.0/8", "2001:db8::/32"} }, "", ""},
		{"bad network", func(r *gatewaypb.GetOrCreateStubRequest) { r.AllowList = []string{"example.com"} }, fault.Invalid, "allow_list"},
		{"long allow list", func(r *gatewaypb.GetOrCreateStubRequest) { r.AllowList = make([]string, maxAllowList+1) }, fault.TooLarge, "allow_list"},
		{"block and allow", func(r *gatewaypb.GetOrCreateStubRequest) {
			r.BlockNetwork, r.AllowList = true, []string{"10.0.0.0/8"}
		}, fault.Invalid, "exclude"},
		{"long retry_for", func(r *gatewaypb.GetOrCreateStubRequest) { r.RetryFor = make([]string, maxNames+1) }, fault.TooLarge, "retry_for"},
		{"many retries", func(r *gatewaypb.GetOrCreateStubRequest) { r.Retries = math.MaxUint32 }, fault.Invalid, "retries"},
		{"policy's retries", func(r *gatewaypb.GetOrCreateStubRequest) {
			r.TaskPolicy = &gatewaypb.TaskPolicy{MaxRetries: math.MaxUint32}
		}, fault.Invalid, "retries"},
		{"timeout for ever", func(r *gatewaypb.GetOrCreateStubRequest) { r.Timeout = -1 }, "", ""},
		{"timeout beyond a duration", func(r *gatewaypb.GetOrCreateStubRequest) { r.Timeout = math.MaxInt64 }, fault.Invalid, "timeout"},
		{"warm for ever", func(r *gatewaypb.GetOrCreateStubRequest) { r.KeepWarmSeconds = -1 }, "", ""},
		{"warm NaN", func(r *gatewaypb.GetOrCreateStubRequest) { r.KeepWarmSeconds = float32(math.NaN()) }, fault.Invalid, "keep_warm"},
		{"warm -Inf", func(r *gatewaypb.GetOrCreateStubRequest) { r.KeepWarmSeconds = float32(math.Inf(-1)) }, fault.Invalid, "keep_warm"},
		{"warm too long", func(r *gatewaypb.GetOrCreateStubRequest) { r.KeepWarmSeconds = 1e20 }, fault.Invalid, "keep_warm"},
		{"too many containers", func(r *gatewaypb.GetOrCreateStubRequest) {
			r.Autoscaler = &gatewaypb.Autoscaler{MaxContainers: math.MaxUint32}
		}, fault.Invalid, "max_containers"},
		{"volumes", func(r *gatewaypb.GetOrCreateStubRequest) { r.Volumes = append(r.Volumes, nil) }, fault.Unsupported, "volumes"},
		{"secrets", func(r *gatewaypb.GetOrCreateStubRequest) { r.Secrets = append(r.Secrets, nil) }, fault.Unsupported, "secrets"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := good()
			c.change(r)
			cfg, err := FromRequest(r, "root")
			if fault.CodeOf(err) != c.want || (err != nil && !strings.Contains(err.Error(), c.text)) {
				t.Fatalf("%v, want %s with %q", err, c.want, c.text)
			}
			if err != nil {
				return
			}
			// What is accepted can be kept, read back and placed.
			b, err := cfg.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			again, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			b2, err := again.Bytes()
			if err != nil || !bytes.Equal(b, b2) {
				t.Errorf("%s\nbecame %s, %v", b, b2, err)
			}
			if _, err := again.Demand("ws", nil); err != nil {
				t.Error(err)
			}
			if again.Timeout() < 0 || again.KeepWarm() < -1 {
				t.Errorf("timeout %s, keep warm %s", again.Timeout(), again.KeepWarm())
			}
		})
	}
}

func TestDefaultsAndPolicies(t *testing.T) {
	c, err := FromRequest(good(), "root")
	if err != nil || c.CPUMillis != 125 || c.MemoryMiB != 128 || c.MaxPending != 100 || c.ObjectRoot != "root" || c.MaxContainers != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	r := good()
	r.Timeout, r.Retries, r.KeepWarmSeconds = 10, 3, 1.5
	r.TaskPolicy = &gatewaypb.TaskPolicy{MaxRetries: 1, Timeout: 20, Ttl: 30}
	r.Autoscaler = &gatewaypb.Autoscaler{MaxContainers: 7}
	c, err = FromRequest(r, "root")
	if err != nil || c.Retries != 1 || c.Timeout() != 20*time.Second || c.TTLSec != 30 || c.KeepWarm() != 1500*time.Millisecond || c.MaxContainers != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	r.TaskPolicy = &gatewaypb.TaskPolicy{}
	if c, err = FromRequest(r, "root"); err != nil || c.Retries != 3 || c.Timeout() != 10*time.Second {
		t.Errorf("an empty policy: %+v, %v", c, err)
	}
}

func TestEqualRequestsAreEqualBytes(t *testing.T) {
	r := good()
	r.Env, r.Gpu, r.RetryFor = []string{"A=1"}, "any", []string{"ValueError"}
	a, err := FromRequest(r, "root")
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromRequest(r, "root")
	if err != nil {
		t.Fatal(err)
	}
	ab, _ := a.Bytes()
	bb, _ := b.Bytes()
	if !bytes.Equal(ab, bb) {
		t.Errorf("%s\n%s", ab, bb)
	}
	if b, err = FromRequest(r, "another"); err != nil {
		t.Fatal(err)
	}
	if bb, _ = b.Bytes(); bytes.Equal(ab, bb) {
		t.Error("another code tree is the same stub")
	}
	if _, err := Parse([]byte("no json")); err == nil {
		t.Error("parsed nonsense")
	}
	if c, err := Parse([]byte(`{"type":"function","newer":1}`)); err != nil || c.Type != "function" {
		t.Errorf("a field of a newer version: %+v, %v", c, err)
	}
}
