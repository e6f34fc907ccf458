/* Preloaded into llama.cpp's programs: they print by a thread that nobody waits for at the end (its
 * author's choice, ggml-org/llama.cpp issue 22142), so that a busy machine loses the last lines, and
 * these have the figures. A moment more, and they are out. */
#include <unistd.h>

__attribute__((destructor)) static void linger(void)
{
    sleep(1);
}
