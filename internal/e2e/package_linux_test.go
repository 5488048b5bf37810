package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"raftkv/internal/testkit"
)

// needRoot skips a test that can't do without root or a program.
func needRoot(t *testing.T, programs ...string) {
	t.Helper()
	slow(t)
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
}

// output runs a command, which must succeed, and returns what it prints, without spaces around.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// TestImage builds the image of Containerfile, looks at what is in it, and runs that as its user, with nothing else of
// this machine. The Go of this machine stands in for the one that the image is built by: nothing is fetched.
func TestImage(t *testing.T) {
	needRoot(t, "buildah", "git")
	t.Parallel()
	dir := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		return output(t, "buildah", append([]string{"--root", filepath.Join(dir, "root"), "--runroot",
			filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	text, err := os.ReadFile("../../Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, golang, _ := strings.Cut(string(text), "\nFROM ")
	golang, _, _ = strings.Cut(golang, " ")

	base := buildah("from", "scratch")
	root := buildah("mount", base)
	goEnv := func(name string) string { return output(t, "go", "env", name) }
	binds := []string{"/usr", goEnv("GOROOT"), goEnv("GOMODCACHE"), goEnv("GOCACHE")}
	for _, link := range []string{"/bin", "/lib", "/lib64"} {
		if to, err := os.Readlink(link); err == nil {
			if err := os.Symlink(to, root+link); err != nil {
				t.Fatal(err)
			}
		} else {
			binds = append(binds, link)
		}
	}
	for _, made := range append([]string{"/tmp", "/etc"}, binds...) {
		if err := os.MkdirAll(root+made, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	buildah("umount", base)
	buildah("config", "--env", "PATH="+goEnv("GOROOT")+"/bin:/usr/bin:/bin", "--env", "GOTOOLCHAIN=local",
		"--env", "GOMODCACHE="+goEnv("GOMODCACHE"), "--env", "GOCACHE="+goEnv("GOCACHE"), "--env", "GOFLAGS=-buildvcs=false",
		base)
	buildah("commit", "--quiet", base, golang)
	context := filepath.Join(dir, "context") // as a clone has it, with what is not committed yet
	files := output(t, "git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard")
	for path := range strings.Lines(files) {
		path = strings.TrimSpace(path)
		content, err := os.ReadFile(filepath.Join("../..", path))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not committed
		}
		to := filepath.Join(context, path)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	build := []string{"build", "--pull-never", "--isolation", "chroot", "-t", "raftkv"}
	for _, bind := range binds {
		build = append(build, "-v", bind+":"+bind)
	}
	buildah(append(build, context)...)

	archive := filepath.Join(dir, "raftkv.tar")
	buildah("push", "--quiet", "raftkv", "oci-archive:"+archive)
	const mostFetched, mostUnpacked = 12e6, 16e6
	if size := fileSize(t, archive); size > mostFetched {
		t.Errorf("the image, compressed as it is fetched: got %d bytes, want at most %.0f", size, mostFetched)
	}
	var image struct {
		OCIv1 struct {
			Config struct {
				User            string
				Env, Entrypoint []string
			} `json:"config"`
		}
	}
	inspected := buildah("inspect", "--type", "image", "raftkv")
	if err := json.Unmarshal([]byte(inspected), &image); err != nil {
		t.Fatal(err)
	}
	config := image.OCIv1.Config
	user, group, _ := strings.Cut(config.User, ":")
	uid, errUser := strconv.Atoi(user)
	gid, errGroup := strconv.Atoi(group)
	if err := errors.Join(errUser, errGroup); err != nil || uid == 0 || gid == 0 {
		t.Fatalf("the user of the image: got %q, %v, want numbers that are not root's", config.User, err)
	}
	root = buildah("mount", buildah("from", "--pull-never", "raftkv"))
	var held []string
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		held = append(held, strings.TrimPrefix(path, root))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"", "/data", "/raftkv"}; !slices.Equal(held, want) {
		t.Errorf("the image holds %q, want %q", held, want)
	}
	if size := fileSize(t, root+"/raftkv"); size > mostUnpacked {
		t.Errorf("the program: got %d bytes, want at most %.0f", size, mostUnpacked)
	}
	for _, want := range []struct {
		path     string
		mode     fs.FileMode // beside that the owner may write
		uid, gid int
	}{{"/", 0o555, 0, 0}, {"/raftkv", 0o555, 0, 0}, {"/data", 0o500, uid, gid}} {
		info, err := os.Stat(root + want.path)
		if err != nil {
			t.Fatal(err)
		}
		s := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm()&^0o200 != want.mode || int(s.Uid) != want.uid || int(s.Gid) != want.gid {
			t.Errorf("%s: got mode %v of %d:%d, want %v of %d:%d", want.path, info.Mode().Perm(), s.Uid, s.Gid, want.mode,
				want.uid, want.gid)
		}
	}
	if !slices.Equal(config.Entrypoint, []string{"/raftkv"}) {
		t.Fatalf("entrypoint: got %q, want /raftkv", config.Entrypoint)
	}

	n := testkit.NewNode(t, "/raftkv", "n1")
	for _, value := range []string{"1", "2"} { // and with the volume that it has made
		cmd := n.Command()
		cmd.Dir, cmd.Env = "/", append(slices.Clone(config.Env), "RAFT_NODE_ID=n1", "HTTP_SERVER_PORT="+n.HTTPPort,
			"RAFT_SERVER_PORT="+n.RaftPort, "HTTP_SERVER_HOST=127.0.0.1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root,
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		n.Process = testkit.Start(t, cmd)
		n.WaitReady(t)
		n.Set(t, "run"+value, value)
		n.Stop(t, syscall.SIGTERM)
	}
	if !strings.Contains(n.Stderr.String(), `"key":"run1"`) {
		t.Error("the second run has not read what the first one wrote")
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestDebianPackage installs the package of release.sh with dpkg, on a copy of this machine's root directory that is
// gone with the test, has systemd verify the unit where it lies, runs the program as the user that was made, and takes
// the package off again: the volume stays.
func TestDebianPackage(t *testing.T) {
	needRoot(t, "dpkg", "systemd-analyze", "systemd-sysusers", "unshare", "git")
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skipf("release.sh makes no package for %s", runtime.GOARCH)
	}
	t.Parallel()
	dir := t.TempDir()
	dist, copied := filepath.Join(dir, "dist"), filepath.Join(dir, "copied")
	output(t, "../../release.sh", dist, "linux/"+runtime.GOARCH)
	packages, err := filepath.Glob(filepath.Join(dist, "*.deb"))
	if err != nil || len(packages) != 1 {
		t.Fatalf("got %q, %v, want one package", packages, err)
	}
	if err := os.Mkdir(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	// Only the root file system is overlaid: not /run, by which the scripts would find this machine's systemd, nor any
	// other mount.
	onCopy := exec.Command("unshare", "--mount", "--pid", "--fork", "bash", "-euc", `
		mount -t tmpfs none "$1"
		mkdir "$1/upper" "$1/work" "$1/tree"
		mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/tree" || { echo NO OVERLAY; exit; }
		cp "$2" "$1/tree/raftkv.deb"
		mount -t proc proc "$1/tree/proc"
		exec chroot "$1/tree" bash -euc "$3"`, "bash", copied, packages[0], `
		export DEBIAN_FRONTEND=noninteractive
		dpkg --install /raftkv.deb >/dev/null 2>&1
		id -nu raftkv
		stat -c '%a %U %n' /usr/bin/raftkv /usr/lib/systemd/system/raftkv.service /etc/raftkv/raftkv.env
		systemd-analyze verify /usr/lib/systemd/system/raftkv.service 2>&1 | grep raftkv || true
		install -d -m 700 -o raftkv -g raftkv /var/lib/raftkv
		setpriv --reuid raftkv --regid raftkv --clear-groups /usr/bin/raftkv -version | cut -d' ' -f1
		echo '# mine' >>/etc/raftkv/raftkv.env
		dpkg --install /raftkv.deb >/dev/null
		tail -n 1 /etc/raftkv/raftkv.env
		dpkg --purge raftkv >/dev/null 2>&1
		test ! -e /usr/bin/raftkv && test ! -e /etc/raftkv/raftkv.env
		test -d /var/lib/raftkv && echo the volume stays`)
	out, err := onCopy.CombinedOutput()
	if strings.Contains(string(out), "NO OVERLAY") {
		t.Skipf("no copy of the root directory can be made here: %s", out)
	}
	const want = `raftkv
755 root /usr/bin/raftkv
644 root /usr/lib/systemd/system/raftkv.service
644 root /etc/raftkv/raftkv.env
raftkv
# mine
the volume stays
`
	if err != nil || string(out) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, out, want)
	}
}
