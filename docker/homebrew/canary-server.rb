# A formula for a tap of your own; docker/README.md says how to use it. It has not been run: only `ruby -c` has read it.
class CanaryServer < Formula
  desc "Speech to text and translation on your own machine: NVIDIA Canary on MLX"
  # Both addresses stand for the repository that you have this file from.
  homepage "https://example.com/canary-server"
  license all_of: ["Apache-2.0", "MIT"]
  head "https://example.com/canary-server.git", branch: "main"

  depends_on "uv" => :build
  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@3.13"

  # Wheels keep their own library names: Homebrew's longer ones do not fit into the headers of some of them.
  preserve_rpath

  def install
    ENV["UV_PYTHON_DOWNLOADS"] = "never"
    system "uv", "venv", "--python", Formula["python@3.13"].opt_bin/"python3.13", libexec
    # Dependencies come as wheels: building MLX would take Xcode and half an hour.
    system "uv", "pip", "install", "--python", libexec/"bin/python", buildpath
    bin.install_symlink libexec/"bin/canary"
  end

  def post_install
    (var/"canary-server").mkpath
    (var/"canary-server").chmod 0700
  end

  # `canary serve` reads its settings from a file .env in this folder.
  service do
    run [opt_bin/"canary", "serve"]
    keep_alive successful_exit: false
    process_type :interactive
    working_dir var/"canary-server"
    log_path var/"log/canary-server.log"
    error_log_path var/"log/canary-server.log"
  end

  test do
    assert_match(/\Acanary-server \d/, shell_output("#{bin}/canary --version"))
  end
end
