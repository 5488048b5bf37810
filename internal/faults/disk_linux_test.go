package faults

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// mountMemory mounts a file system of so many bytes at dir.
func mountMemory(dir string, bytes int64) error {
	return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes))
}

// resize changes how many bytes a file system of mountMemory has room for; 0: what it
// holds, and spare.
func resize(dir string, bytes, spare int64) error {
	if bytes == 0 {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			return err
		}
		bytes = int64(fs.Blocks-fs.Bfree)*fs.Bsize + spare
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
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", image).CombinedOutput(); err != nil {
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
