/*
 * The first process of the machine of emulate.sh: runs /program with what follows its name in
 * /arguments, a line each. Its standard output goes to the second serial port, what else it says to the
 * first, behind a line that says so; a last line there tells its status. Then the power goes off.
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

enum { MOST_ARGUMENTS = 16, SHUTDOWN_PORT = 0x8900 };

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

static int run(int out) {
    static char text[4096];
    char *arguments[MOST_ARGUMENTS + 2] = {"/program"};
    FILE *file = fopen("/arguments", "r");
    size_t length = file == NULL ? 0 : fread(text, 1, sizeof text - 1, file);
    text[length] = '\0';
    char *line = strtok(text, "\n");
    for (int i = 1; i <= MOST_ARGUMENTS && line != NULL; i++, line = strtok(NULL, "\n"))
        arguments[i] = line;

    pid_t child = fork();
    if (child == 0) {
        dup2(out, STDOUT_FILENO);
        execv(arguments[0], arguments);
        perror(arguments[0]);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void) {
    mount("devices", "/dev", "devtmpfs", 0, NULL);
    int console = open_port("/dev/ttyS0"), out = open_port("/dev/ttyS1");
    dup2(console, STDERR_FILENO);
    fprintf(stderr, "emulated: begins\n");
    int status = out < 0 ? 125 : run(out);
    fprintf(stderr, "\nemulated: status %d\n", status); /* whatever the program's last line was */
    tcdrain(out);
    tcdrain(STDERR_FILENO);
    power_off();
}
