/*
 * The first process of the machine of emulate.sh: runs /program with its own arguments. Standard output
 * goes to the second serial port, what else is said to the first, behind a line that says so; there its
 * status is told at the end. Then the power goes off.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { SHUTDOWN_PORT = 0x8900 };

/* Bochs ends at this word. */
static void power_off(void) {
    const char *word = "Shutdown";
    if (iopl(3) == 0)
        for (; *word != '\0'; word++) outb((unsigned char)*word, SHUTDOWN_PORT);
    reboot(RB_AUTOBOOT);
}

/* Bytes go as they are. */
static int open_port(const char *name) {
    struct termios settings;
    int port = open(name, O_RDWR | O_NOCTTY);
    if (port < 0 || tcgetattr(port, &settings) != 0) return -1;
    cfmakeraw(&settings);
    return tcsetattr(port, TCSANOW, &settings) == 0 ? port : -1;
}

static int run(char **arguments, int out) {
    pid_t child = fork();
    if (child == 0) {
        dup2(out, STDOUT_FILENO);
        execv("/program", arguments);
        perror("/program");
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int count, char **arguments) {
    (void)count;
    mount("devices", "/dev", "devtmpfs", 0, NULL);
    int console = open_port("/dev/ttyS0"), out = open_port("/dev/ttyS1");
    dup2(console, STDERR_FILENO);
    fprintf(stderr, "emulated: begins\n");
    fprintf(stderr, "emulated: status %d\n", out < 0 ? 125 : run(arguments, out));
    tcdrain(out);
    tcdrain(STDERR_FILENO);
    power_off();
}
