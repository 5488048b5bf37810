package faults

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mountMemory mounts a file system of so many bytes at dir.
func mountMemory(dir string, bytes int64) error {
	return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes))
}

// resize changes how many bytes a file system of mountMemory has room for; 0: what it
// holds, and spare.
func resize(dir string, bytes, spare int64) error {
	if bytes == 0 {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			return err
		}
		bytes = int64(fs.Blocks-fs.Bfree)*int64(fs.Bsize) + spare
	}
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes))
}

func unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }

// mountDisk makes dir, and mounts a file system at it that is in a file beside it. What
// the kernel has not written to that file is what a power cut takes: kill -9 takes
// nothing, as the page cache outlives a process.
func mountDisk(dir string) error {
	image := dir + ".disk"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(256<<20), f.Close(), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard",
		image).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return mountImage(image, dir)
}

// mountImage mounts so that the kernel writes nothing by itself for as long as a test
// takes.
func mountImage(image, dir string) error {
	if out, err := exec.Command("mount", "-o", "loop,commit=900,data=ordered", image, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

// cut makes the file system at dir, which no process uses, what it is after a power cut:
// the file that it is in, as it is now, is mounted in its place.
func cut(dir string) error {
	image := dir + ".disk"
	if err := copyFile(image, image+".cut"); err != nil {
		return err
	}
	if err := unix.Unmount(dir, 0); err != nil { // writes the rest to a file that nobody reads again
		return fmt.Errorf("unmount: %w", err)
	}
	if err := os.Rename(image+".cut", image); err != nil {
		return err
	}
	return mountImage(image, dir)
}

// disk is the file system at a directory. While it is frozen who writes to it waits, and
// no signal ends that wait.
type disk struct {
	dir   *os.File
	guard *exec.Cmd // thaws the disk when this process has ended, however
	alive io.Closer // by which guard knows that it has not
}

// The requests of ioctl, which x/sys/unix does not have.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// openDisk returns the disk of mountDisk at dir, which stays busy until its close: no
// other that may be at dir later is ever frozen.
func openDisk(dir string) (*disk, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	var own, parent unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &own), unix.Stat(filepath.Dir(dir), &parent)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if own.Dev == parent.Dev {
		return nil, errors.Join(fmt.Errorf("%s is not a file system of its own", dir), f.Close())
	}
	guard := exec.Command("sh", "-c", `read -r line; exec fsfreeze --unfreeze "$0" 2>/dev/null`, dir)
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	alive, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &disk{f, guard, alive}, nil
}

// freeze returns when the disk has all that was written to it, and stands still.
func (d *disk) freeze() error {
	if err := unix.IoctlSetInt(int(d.dir.Fd()), fiFreeze, 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

func (d *disk) thaw() error {
	if err := unix.IoctlSetInt(int(d.dir.Fd()), fiThaw, 0); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// close thaws the disk if it is frozen. It may be called more than once.
func (d *disk) close() {
	_ = d.thaw()
	_ = d.dir.Close()
	_ = d.alive.Close()
	_ = d.guard.Wait()
}

// waits reports whether a thread of the node waits for the disk of its volume, where no
// signal reaches it.
func (n *node) waits() bool {
	cmd, _, _ := n.process()
	process := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
	threads, _ := filepath.Glob(filepath.Join(process, "task", "*"))
	for _, thread := range threads {
		stat, _ := os.ReadFile(filepath.Join(thread, "stat"))
		call, _ := os.ReadFile(filepath.Join(thread, "syscall")) // its number and arguments
		fields := strings.Fields(string(call))
		if !strings.Contains(string(stat), ") D ") || len(fields) < 2 {
			continue
		}
		descriptor, _ := strconv.ParseUint(fields[1], 0, 31)
		path, _ := os.Readlink(filepath.Join(process, "fd", fmt.Sprint(descriptor)))
		if strings.HasPrefix(path, n.volume+"/") {
			return true
		}
	}
	return false
}

// copyFile copies a file, with its holes.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	info, err := in.Stat()
	if err == nil {
		err = out.Truncate(info.Size())
	}
	for at := int64(0); err == nil; {
		begin, seekErr := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(seekErr, unix.ENXIO) {
			break // holes to the end
		}
		if err = seekErr; err != nil {
			break
		}
		if at, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE); err == nil {
			_, err = io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, at-begin))
		}
	}
	return errors.Join(err, out.Close())
}
