#include "common/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <sstream>
#include <string>

#include "aft/error.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/output.h"

namespace aft::app {
namespace {

/// A descriptor that was closed when we began would go to the first file that is opened, and what is printed into that
/// file. Instead it leads to where reading and writing fail.
void occupy_standard_descriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) == -1) {
      static_cast<void>(::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) == fd);
    }
  }
}

int complain(const CLI::App& app, const std::string& text, int code) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), text.c_str());
  return code;
}

/// Runs `work`, and turns what it throws into a message and an exit code.
int guarded(const CLI::App& app, const std::function<int()>& work) {
  try {
    return work();
  } catch (const ClosedPipe&) {
    return kOk;
  } catch (const SystemError& e) {
    return complain(app, e.what(), kFailed);
  } catch (const Error& e) {
    return complain(app, e.what(), kBadInput);
  } catch (const std::bad_alloc&) {
    return complain(app, "out of memory", kFailed);
  } catch (const std::exception& e) {
    return complain(app, e.what(), kFailed);
  }
}

int parse_and_run(CLI::App& app, int argc, char** argv, const std::function<int()>& command) {
  try {
    parse(app, argc, argv);
  } catch (const CLI::Success& e) {  // help, version
    std::ostringstream text;
    app.exit(e, text, text);
    write_out(text.str());
    return kOk;
  } catch (const CLI::ParseError& e) {
    return complain(app, std::string(e.what()) + "; see --help", kBadInput);
  }
  return command();
}

}  // namespace

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& command) {
  occupy_standard_descriptors();
  std::signal(SIGXFSZ, SIG_IGN);
  const int code = guarded(app, [&] { return parse_and_run(app, argc, argv, command); });
  const int output = guarded(app, [] {
    finish_output();
    return kOk;
  });
  return code == kOk ? output : code;
}

}  // namespace aft::app
