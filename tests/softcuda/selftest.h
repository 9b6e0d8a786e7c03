/* selftest.h - the frame of the software device's own tests: a table of functions, run by name, one to a process.
 *
 * Without an argument a program lists the names. Tests called dies_... end in a sanitizer's report, and say with EXPECT
 * lines, before they begin, what it must hold. */
#ifndef SOFTCUDA_SELFTEST_H
#define SOFTCUDA_SELFTEST_H

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct selftest {
    const char *name;
    void (*run)();
    selftest *next;
    static selftest *&first() {
        static selftest *head;
        return head;
    }
    selftest(const char *named, void (*body)()) : name(named), run(body), next(first()) { first() = this; }
};

#define TEST(name)                                                                                                     \
    static void test_##name();                                                                                         \
    static selftest entry_of_##name(#name, test_##name);                                                               \
    static void test_##name()

#define CHECK(holds)                                                                                                   \
    do {                                                                                                               \
        if (!(holds)) {                                                                                                \
            std::printf("%s:%d: does not hold: %s\n", __FILE__, __LINE__, #holds);                                     \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

/* Both sides, as numbers. */
#define SAME(is, should)                                                                                               \
    do {                                                                                                               \
        double softcuda_is = static_cast<double>(is), softcuda_should = static_cast<double>(should);                   \
        if (!(softcuda_is == softcuda_should)) {                                                                       \
            std::printf("%s:%d: %s is %.9g, not %.9g\n", __FILE__, __LINE__, #is, softcuda_is, softcuda_should);       \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

#define HOLDS(text, part)                                                                                              \
    do {                                                                                                               \
        std::string softcuda_text = (text);                                                                            \
        if (softcuda_text.find(part) == std::string::npos) {                                                           \
            std::printf("%s:%d: '%s' is not in: %s\n", __FILE__, __LINE__, std::string(part).c_str(),                  \
                        softcuda_text.c_str());                                                                        \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

#define EXPECT(text) (std::printf("EXPECT %s\n", text), std::fflush(stdout))

/* A kernel that any block size may run. */
#define KERNEL(name, type)                                                                                             \
    enum { name##_threads = 1024 };                                                                                    \
    FS_KERNEL(name, type)

int main(int count, char **arguments) {
    for (selftest *t = selftest::first(); t; t = t->next) {
        if (count < 2) std::printf("%s\n", t->name);
        else if (!std::strcmp(t->name, arguments[1])) return t->run(), 0;
    }
    return count < 2 ? 0 : 2;
}

#endif
