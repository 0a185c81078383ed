/*
 * Lets tests use component/allocation.c, built with sanitizers.
 *
 *     child parse              reads lines, and says of each what it means
 *     child run LIMIT COMMAND  says the command's lines, then why it reads no more; gives it LIMIT seconds to end
 */
#include "allocation.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void parse(char *line)
{
    struct snowflock_message m;
    static const char *const kinds[] = {"host", "mca", "env", "ready", "error"};

    if (!snowflock_parse(line, &m)) {
        puts("nothing");
        return;
    }
    fputs(kinds[m.kind], stdout);
    if (NULL != m.name) {
        printf(" %s", m.name);
    }
    if (SNOWFLOCK_HOST == m.kind) {
        printf(" %d", m.slots);
    }
    if (NULL != m.text) {
        printf(" %s", m.text);
    }
    puts("");
}

static bool say(char *line, void *context)
{
    (void)context;
    printf("line of %zu: %.60s\n", strlen(line), line);
    return 0 != strcmp(line, "enough");
}

static int run(int limit, char **argv)
{
    struct snowflock_child child;
    int why = snowflock_start(&child, argv, "/");

    if (0 != why) {
        printf("start: %s\n", strerror(why));
        return 0;
    }
    do {
        struct pollfd output = {.fd = child.output, .events = POLLIN};
        poll(&output, 1, 10000);
        why = snowflock_read(&child, say, NULL);
    } while (EAGAIN == why);
    printf("end: %s\n", 0 == why ? "closed" : strerror(why));
    puts(snowflock_end(&child, limit) ? "joined" : "killed");
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 3 && 0 == strcmp(argv[1], "run")) {
        return run(atoi(argv[2]), argv + 3);
    }
    char *line = NULL;
    size_t size = 0;
    for (ssize_t n; (n = getline(&line, &size, stdin)) > 0;) {
        line[n - 1] = '\0';
        parse(line);
    }
    free(line);
    return 0;
}
