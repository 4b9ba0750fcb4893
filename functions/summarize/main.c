/* SPDX-License-Identifier: Apache-2.0
 *
 * summarize: POST a text, get a summary in a sentence or two.
 *
 *     curl --data-binary @letter.txt URL
 *     curl --data-binary @letter.txt 'URL?tokens=40'
 *
 * The answer is plain text, made greedily: the same text has the same summary.
 */
#include "faas_nn.h"

#include <stdio.h>

static const char usage[] = "POST a text to this address to get it summarized:\n\n"
                            "    curl --data-binary @letter.txt URL\n";

static const char before[] = "<|im_start|>user\nSummarize the following text in one or two "
                             "sentences.\n\n";
static const char after[] = "<|im_end|>\n<|im_start|>assistant\n";

enum { DEFAULT_TOKENS = 120, MOST_TOKENS = 1024 };

static int refuse(const char *status, const char *headers, const char *message) {
    printf("Status: %s\nContent-Type: text/plain; charset=utf-8\n%s\n%s\n", status, headers, message);
    return 0;
}

static int refuse_for(int error) {
    const char *message = faas_nn_error(error);
    switch (error) {
    case FAAS_NN_BUSY:
        return refuse("503 Service Unavailable", "Retry-After: 1\n", message);
    case FAAS_NN_PROMPT_TOO_LONG:
    case FAAS_NN_TOO_LARGE:
        return refuse("413 Content Too Large", "", message);
    case FAAS_NN_INVALID_ARGUMENT: /* what else could it be than the text? */
        return refuse("400 Bad Request", "", "the text is not UTF-8");
    default:
        return refuse("500 Internal Server Error", "", message);
    }
}

/* The prompt around all of stdin. A text can't end its message: the marks of the
 * template are broken up in it, "<|" becomes "< |". */
static char *read_prompt(size_t *size) {
    size_t room = 4096;
    char *prompt = malloc(room);
    int c, last = 0;
    *size = sizeof before - 1;
    if (prompt == NULL) {
        abort();
    }
    memcpy(prompt, before, *size);
    while ((c = getchar()) != EOF) {
        if (room - *size < sizeof after + 2) {
            room *= 2;
            char *more = realloc(prompt, room);
            if (more == NULL) {
                abort();
            }
            prompt = more;
        }
        if (c == '|' && last == '<') {
            prompt[(*size)++] = ' ';
        }
        prompt[(*size)++] = (char)c;
        last = c;
    }
    if (*size == sizeof before - 1) {
        return NULL;
    }
    memcpy(prompt + *size, after, sizeof after);
    *size += sizeof after - 1;
    return prompt;
}

static int tokens_wanted(void) {
    const char *query = getenv("QUERY_STRING");
    int tokens = 0;
    if (query == NULL || sscanf(query, "tokens=%d", &tokens) != 1 || tokens < 1) {
        return DEFAULT_TOKENS;
    }
    return tokens < MOST_TOKENS ? tokens : MOST_TOKENS;
}

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    const char *method = getenv("REQUEST_METHOD");
    if (method != NULL && strcmp(method, "POST") != 0) {
        printf("Content-Type: text/plain; charset=utf-8\n\n%s", usage);
        return 0;
    }
    size_t prompt_size, size;
    char *prompt = read_prompt(&prompt_size), *text, config[64];
    if (prompt == NULL) {
        return refuse("400 Bad Request", "", "the body is empty; send a text");
    }
    faas_nn model;
    int error = faas_nn_load(&model, "default");
    if (error == 0) {
        snprintf(config, sizeof config, "{\"temp\": 0, \"n-predict\": %d}", tokens_wanted());
        error = faas_nn_config(&model, config);
    }
    if (error == 0) {
        error = faas_nn_generate(&model, prompt, prompt_size, &text, &size);
    }
    if (error != 0) {
        return refuse_for(error);
    }
    size = faas_nn_trim(text, size);
    printf("Content-Type: text/plain; charset=utf-8\n\n");
    fwrite(text, 1, size, stdout);
    putchar('\n');
    return 0;
}
