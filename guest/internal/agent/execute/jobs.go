package execute

import (
	"sort"
	"sync"
	"time"

	"bandsox.dev/guest/internal/agent/failure"
	"bandsox.dev/guest/internal/agent/reaper"
	"bandsox.dev/guest/internal/wire"
)

const (
	// maxFinished and maxFinishedBytes bound the commands whose end is kept. The one that has been kept longest makes room.
	maxFinished      = 256
	maxFinishedBytes = 8 << 20
	// maxOver is how many names of commands that are over are remembered (PROTOCOL.md section 5).
	maxOver = 4096
)

// Jobs holds the commands that have a name: those that run, those whose end is kept, and the names of those that are over. Its
// zero value is ready.
type Jobs struct {
	mutex    sync.Mutex
	known    map[string]*job
	finished []finishedJob // of known; the one that has been kept longest first
	bytes    int           // of the output that finished keep
	over     map[string]bool
	order    []string // over's, oldest first
}

// finishedJob is a command whose end is kept.
type finishedJob struct {
	*job
	bytes int // of the output that was kept when it ended
}

// Exec begins the command of an `exec` with a `job`, or attaches to the one that was begun under that name. hangUp ends the
// connection.
func (s *Jobs) Exec(message wire.Message, r *reaper.Reaper, out *wire.Writer, hangUp func()) (*Attachment, error) {
	name := message.Text("job")
	for {
		s.mutex.Lock()
		if s.over[name] {
			s.mutex.Unlock()
			return nil, failure.New(failure.JobOver, "cannot run a command again: its job is over")
		}
		j, known := s.known[name]
		if !known {
			break
		}
		s.mutex.Unlock()
		<-j.begun
		if j.failed {
			continue // it never ran: the name is free
		}
		a := &Attachment{job: j, out: out, hangUp: hangUp}
		err := j.attach(a, 0, true)
		if err == errGone {
			return nil, failure.New(failure.JobOver, "cannot run a command again: its job is over")
		}
		if err != nil {
			return nil, err
		}
		return a, nil
	}
	j := newJob(name, time.Duration(message.Integer("keepMs", 0))*time.Millisecond, s)
	if s.known == nil {
		s.known = map[string]*job{}
	}
	s.known[name] = j
	s.mutex.Unlock()
	return s.begin(j, message, r, out, hangUp)
}

// begin starts the command of a new job.
func (s *Jobs) begin(j *job, message wire.Message, r *reaper.Reaper, out *wire.Writer, hangUp func()) (*Attachment, error) {
	a := &Attachment{job: j, out: out, hangUp: hangUp, isFirst: true, ready: true}
	j.present = a
	j.command = &Command{reaper: r, job: j, hangUp: j.hangUp}
	err := failure.New(failure.Internal, "cannot run a command") // of a panic
	defer func() {
		if err == nil {
			close(j.begun)
			return
		}
		j.failed = true
		s.free(j, err.Code == failure.Internal)
		close(j.begun)
	}()
	_, startErr := j.command.start(message)
	if err = nil; startErr != nil {
		err = failure.Of(startErr, "cannot run a command")
		return nil, startErr
	}
	return a, nil
}

// free ends a job whose command could not be started. What is refused may be asked for again; of what failed for another reason
// nobody can tell whether it was before or after the fork.
func (s *Jobs) free(j *job, mayHaveRun bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if mayHaveRun {
		s.remove(j)
		return
	}
	delete(s.known, j.name)
}

// Attach gives a command that runs, or whose end is kept, to another connection. hangUp ends that one.
func (s *Jobs) Attach(message wire.Message, out *wire.Writer, hangUp func()) (*Attachment, error) {
	s.mutex.Lock()
	j, known := s.known[message.Text("job")]
	s.mutex.Unlock()
	if !known {
		return nil, errGone
	}
	<-j.begun
	if j.failed {
		return nil, errGone
	}
	a := &Attachment{job: j, out: out, hangUp: hangUp}
	if err := j.attach(a, message.Integer("offset", oldest), false); err != nil {
		return nil, err
	}
	return a, nil
}

// LeaveUnattended lets all commands run on without a host, in a machine that was started from the state of another.
func (s *Jobs) LeaveUnattended() {
	for _, j := range s.begun() {
		j.leaveUnattended()
	}
}

// List tells of the commands that run, and of those whose end is kept. nowMs is the machine's uptime.
func (s *Jobs) List(nowMs int64) (wire.Jobs, error) {
	var jobs []wire.Job
	for _, j := range s.begun() {
		jobs = append(jobs, j.describe(nowMs))
	}
	// Those that run come first, and then the youngest: where there are too many, the others are left out.
	sort.Slice(jobs, func(a, b int) bool {
		if jobs[a].Ended != jobs[b].Ended {
			return jobs[b].Ended
		}
		return jobs[a].StartedMs > jobs[b].StartedMs
	})
	return wire.ListOf(jobs)
}

// begun gives the jobs whose command was started.
func (s *Jobs) begun() []*job {
	s.mutex.Lock()
	known := make([]*job, 0, len(s.known))
	for _, j := range s.known {
		known = append(known, j)
	}
	s.mutex.Unlock()
	begun := known[:0]
	for _, j := range known {
		if <-j.begun; !j.failed {
			begun = append(begun, j)
		}
	}
	return begun
}

// keepFinished keeps the end of a command, with so many bytes of output.
func (s *Jobs) keepFinished(j *job, bytes int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.known[j.name] != j {
		return // the host has read the end already
	}
	s.finished = append(s.finished, finishedJob{j, bytes})
	s.bytes += bytes
	for len(s.finished) > maxFinished || s.bytes > maxFinishedBytes {
		s.remove(s.finished[0].job)
	}
}

// forget ends a job whose command has ended. Its name stays known for a while.
func (s *Jobs) forget(j *job) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.remove(j)
}

// remove is forget with the mutex held.
func (s *Jobs) remove(j *job) {
	if s.known[j.name] != j {
		return
	}
	delete(s.known, j.name)
	for i, each := range s.finished {
		if each.job == j {
			s.finished = append(s.finished[:i:i], s.finished[i+1:]...)
			s.bytes -= each.bytes
			break
		}
	}
	if s.over == nil {
		s.over = map[string]bool{}
	}
	s.over[j.name] = true
	s.order = append(s.order, j.name)
	if len(s.order) > maxOver {
		delete(s.over, s.order[0])
		s.order = s.order[1:]
	}
	j.release()
}
