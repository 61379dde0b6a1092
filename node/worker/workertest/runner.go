package workertest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/runtime/ctl"
)

// isRunner in a process's environment makes it a runner.
const isRunner = "BEAM_TEST_RUNNER"

// Main becomes the runner if this process was started as one. Test binaries call
// it first in TestMain.
func Main() {
	if os.Getenv(isRunner) != "" {
		os.Exit(run())
	}
}

type runner struct {
	in  *bufio.Reader
	out *os.File
}

func (r *runner) say(h ctl.RunnerHeader, payload []byte) {
	b, err := ctl.EncodeRunner(h, payload)
	if err == nil {
		_, err = r.out.Write(b)
	}
	if err != nil {
		os.Exit(99) // the node is gone
	}
}

func (r *runner) next() (ctl.RunnerHeader, []byte) {
	head, err := r.in.Peek(8)
	if err != nil {
		os.Exit(0)
	}
	n, err := ctl.RunnerFrameLen(head)
	if err != nil {
		os.Exit(98)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		os.Exit(97)
	}
	h, p, err := ctl.DecodeRunner(b)
	if err != nil {
		os.Exit(96)
	}
	return h, p
}

func run() int {
	f := os.NewFile(3, "frames")
	r := &runner{in: bufio.NewReader(f), out: f}
	verb, arg, _ := strings.Cut(os.Getenv("HANDLER"), ":")
	switch verb {
	case "syntax":
		r.say(ctl.RunnerHeader{Type: ctl.RunnerFailed, Error: &ctl.RunnerError{Kind: ctl.KindSyntaxError, Type: "SyntaxError",
			Message: "app.py line 3: invalid syntax", Traceback: "File app.py, line 3", Hint: "mend it"}}, nil)
		return 1
	case "mismatch":
		r.say(ctl.RunnerHeader{Type: ctl.RunnerFailed, Error: &ctl.RunnerError{Kind: ctl.KindPythonMismatch, Message: "3.9 is not 3.11"}}, nil)
		return 1
	case "die": // while it loads
		return number(arg)
	case "deaf": // never loads
		hold()
	case "garbage":
		fmt.Fprint(f, "\xff\xff\xff\xff\xff\xff\xff\xff")
		return 0
	case "nonsense":
		r.say(ctl.RunnerHeader{Type: "hello"}, nil)
	case "chatty": // prints while it loads
		fmt.Println("loading")
	}
	r.say(ctl.RunnerHeader{Type: ctl.RunnerReady, Python: "3.11", PID: os.Getpid()}, nil)
	if verb == "restless" { // ends without a call
		return number(arg)
	}
	for {
		h, args := r.next()
		if h.Type == ctl.RunnerStop {
			return 0
		}
		r.call(h, string(args))
	}
}

func (r *runner) call(h ctl.RunnerHeader, args string) {
	ok := ctl.RunnerHeader{Type: ctl.RunnerResult, TaskID: h.TaskID, Attempt: h.Attempt, Status: ctl.StatusOK, Format: h.Format}
	raised := func(status, msg string) {
		ok.Status = status
		ok.Error = &ctl.RunnerError{Kind: ctl.KindException, Type: "ValueError", Message: msg, Traceback: "Traceback: " + msg}
		r.say(ok, []byte("pickled "+msg))
	}
	r.say(ctl.RunnerHeader{Type: ctl.RunnerStarted, TaskID: h.TaskID, Attempt: h.Attempt}, nil)
	verb, arg, _ := strings.Cut(args, " ")
	switch verb {
	case "echo":
		r.say(ok, []byte(arg))
	case "pid":
		r.say(ok, []byte(strconv.Itoa(os.Getpid())))
	case "attempt":
		r.say(ok, []byte(strconv.Itoa(h.Attempt)))
	case "print": // lines, then the result
		for i := range number(arg) {
			fmt.Println("line", i)
		}
		r.say(ok, nil)
	case "both":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
		r.say(ok, nil)
	case "fail":
		raised(ctl.StatusError, arg)
	case "retry":
		raised(ctl.StatusRetry, arg)
	case "fail-until": // ATTEMPT: raises before that attempt
		if h.Attempt < number(arg) {
			raised(ctl.StatusRetry, "not yet")
			return
		}
		r.say(ok, []byte(strconv.Itoa(h.Attempt)))
	case "exit":
		os.Exit(number(arg))
	case "crash-until": // ATTEMPT: exits 7 before that attempt
		if h.Attempt < number(arg) {
			os.Exit(7)
		}
		r.say(ok, []byte(strconv.Itoa(h.Attempt)))
	case "last": // a result, and the end at once
		r.say(ok, []byte(arg))
		os.Exit(0)
	case "hangup": // closes its channel and lives on
		_ = r.out.Close()
		hold()
	case "big":
		r.say(ok, make([]byte, number(arg)))
	case "stale": // a result of another attempt before its own
		old := ok
		old.Attempt += 7
		r.say(old, []byte("stale"))
		r.say(ok, []byte("fresh"))
	case "hold": // until it is killed
		fmt.Println("holding", os.Getpid())
		hold()
	case "stubborn": // TERM does not impress it, nor its child
		signal.Ignore(syscall.SIGTERM)
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			os.Exit(95)
		}
		fmt.Println("holding", os.Getpid(), cmd.Process.Pid)
		hold()
	case "flood": // prints until it is killed
		line := strings.Repeat("x", 1023) + "\n"
		for {
			fmt.Print(line)
		}
	case "gate": // PATH: a FIFO; ends with the line that somebody wrote into it
		// One line per run goes beside it, so that runs can be counted.
		mark, err := os.OpenFile(arg+".runs", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			os.Exit(94)
		}
		fmt.Fprintln(mark, h.TaskID, h.Attempt)
		_ = mark.Close()
		fmt.Println("at the gate")
		var text string
		for { // another call at the same gate may have taken the line
			g, err := os.Open(arg)
			if err != nil {
				os.Exit(93)
			}
			text, err = bufio.NewReader(g).ReadString('\n')
			_ = g.Close()
			if err == nil {
				break
			}
		}
		r.say(ok, []byte(strings.TrimSuffix(text, "\n")))
	default:
		raised(ctl.StatusError, "unknown verb "+verb)
	}
}

// hold waits for the end of this process.
func hold() {
	for { // a bare select would end it as a deadlock
		time.Sleep(time.Hour)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		os.Exit(92)
	}
	return n
}
